"""Transaction log -> customer table: what every column of the table means.

An order is all rows of one customer at one instant. The observation window W is half open, [start, start + days), in
days of 24 hours: it starts with the customer's first transaction, or with --as_of it is [date - days, date) for all
customers with a transaction in it. Times are UTC. Amounts are currency, with returns netted or (--nonet) taken as 0.

Features, over W only:
  order_count, active_days                   number of orders; number of calendar days with an order
  amount_sum, _mean, _max, _min, _std        of order amounts; the deviation is the population's, 0 for one order
  amount_first, amount_last                  amount of the first and of the last order
  recency_days                               days from the last order to the window's end
  tenure_days                                days from the first to the last order (the time from the first order to
                                             the window's end is tenure_days + recency_days; after the first purchase
                                             it is the same for all, hence no feature)
  inter_purchase_days_mean, _last            days between orders: mean, and between the last two; null for one order
  order_count_window_K, amount_sum_window_K  the same over the K-th of --sub_windows equal parts of W, K from 1
  first_month, first_day_of_week, first_day_of_month
                                             calendar of the first order: 1-12, 0 (Monday) to 6, 1-31
  X_sum, X_mean                              per further numeric column X, over rows; null and NaN are left out, and
                                             both are null where nothing else is there
  X_first, X_most_frequent, X_distinct       per further text or boolean column X: value at the earliest instant that
                                             has one, value in most rows (the smallest value among equals for both),
                                             number of values; nulls are left out

Labels: cltv_H, the sum of amounts in [end of W, end of W + H days), set to 0 where returns make it negative; null where
that interval ends after the log does. A log whose times are all midnights records days and ends with its last day;
any other log ends at its last transaction. Customers whose window ends after the log are left out.
"""
