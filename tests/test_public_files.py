"""Data sets from the user's copy: tiny made-up files in the official layouts, and what is said of other files."""

from collections.abc import Callable, Sequence
import csv
import datetime
import gzip
from pathlib import Path
import tarfile
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mean_jax.data import public
from mean_jax.data.hashing import hash_ids, to_unit_interval
from mean_jax.data.public import criteo, files, kdd98, shoppers
from mean_jax.data.public.__main__ import main
from mean_jax.data.schema import Schema, infer_schema
from mean_jax.errors import UserError

Rows = Sequence[Sequence[object]]
# fmt: off
HILLSTROM = (
    "recency", "history_segment", "history", "mens", "womens", "zip_code", "newbie", "channel", "segment", "visit",
    "conversion", "spend",
)
RETAIL = ("Invoice", "StockCode", "Description", "Quantity", "InvoiceDate", "Price", "Customer ID", "Country")
SHOPPERS = (
    "id", "chain", "dept", "category", "company", "brand", "date", "productsize", "productmeasure", "purchasequantity",
    "purchaseamount",
)
# fmt: on
HILLSTROM_ROWS = (
    (10, "2) $100 - $200", 142.44, 1, 0, "Surburban", 0, "Phone", "Womens E-Mail", 0, 0, 0),
    (6, "3) $200 - $350", 329.08, 1, 1, "Rural", 1, "Web", "No E-Mail", 1, 1, 29.99),
)


def write_csv(path: Path, header: Sequence[str] | None, rows: Rows, delimiter: str = ",") -> Path:
    """Writes plain text, gzip (.gz) or a zip with one file (.zip)."""
    text = "".join(delimiter.join(map(str, row)) + "\n" for row in [*([header] if header else []), *rows]).encode()
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(path.stem, text)
    else:
        path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def load(name: str, source: Path, **options: int) -> pa.Table:
    table = public.load_dataset(name, source, **options).read_all()
    table.validate(full=True)
    return table


def schema_of(name: str, table: pa.Table) -> Schema:
    """Returns the roles that the recipe gives the columns."""
    options = public.DATASETS[name].recipe.prepare
    roles = (options.id_column, options.label_columns, options.excluded)
    return infer_schema(table.schema, name, *roles, options.split, options.split_seed, options.split_column)


@pytest.fixture
def kdd98_folder(tmp_path: Path) -> Path:
    write_kdd98(tmp_path, 400)
    return tmp_path


def write_kdd98(folder: Path, count: int) -> None:
    """Writes customers 1..count into the learning file and count + 1.. into the validation file."""
    features = dict.fromkeys(kdd98._FEATURES, " ")
    header = ["ODATEDW", "DOB", *(name for name in features if name != "ODATEDW"), kdd98.ID]
    rows = []
    for customer in range(1, 2 * count + 1):
        row = dict.fromkeys(header, " ") | {
            "DOB": 3712,
            "ODATEDW": 8901,
            "TCODE": 0,
            "ZIP": "61081",
            kdd98.ID: customer,
        }
        rows.append(row)
    rows[0] |= {"TCODE": 28028, "ZIP": "95008-", "MAILCODE": "B", "NOEXCH": 1, "CHILD07": "F", "AGE": 60, "STATE": "IL"}
    rows[1] |= {"TCODE": 1000, "NOEXCH": 0, "CHILD07": "X", "HOMEOWNR": "H", "RAMNTALL": 240.5, "DOMAIN": "T2 "}
    donation = {customer: customer if customer % 20 == 0 else 0 for customer in range(1, 2 * count + 1)}
    write_csv(
        folder / "cup98LRN.txt",
        [*header, "TARGET_B", "TARGET_D"],
        [[*row.values(), int(donation[row[kdd98.ID]] > 0), donation[row[kdd98.ID]]] for row in rows[:count]],
    )
    write_csv(folder / "cup98val.zip", header, [list(row.values()) for row in rows[count:]])
    order = [2 * count - row for row in range(count)]  # another order than the validation file's
    write_csv(
        folder / "valtargt.txt",
        [kdd98.ID, "TARGET_B", "TARGET_D"],
        [(customer, int(donation[customer] > 0), donation[customer]) for customer in order],
    )


def test_kdd98_joins_the_cup_s_files(kdd98_folder: Path) -> None:
    table = load("kdd98", kdd98_folder)
    ids = table["customer_id"].to_pylist()
    assert ids == list(range(1, 801))
    assert table["donation"].to_pylist() == [customer if customer % 20 == 0 else 0.0 for customer in ids]
    first, second = table.slice(0, 2).to_pylist()
    assert (first["TCODE"], first["ZIP"], first["STATE"], first["AGE"]) == ("28", "95008", "IL", 60.0)
    assert (first["MAILCODE"], first["NOEXCH"], first["CHILD07"], first["HOMEOWNR"]) == (True, True, True, False)
    assert (second["TCODE"], second["DOMAIN"], second["RAMNTALL"], second["AGE"]) == ("1000", "T2", 240.5, None)
    assert (second["NOEXCH"], second["CHILD07"], second["HOMEOWNR"], second["RECP3"]) == (False, False, True, False)


def test_kdd98_tests_on_the_cup_s_validation_file(kdd98_folder: Path) -> None:
    table = load("kdd98", kdd98_folder)
    split = np.array(table["split"].to_pylist())
    assert set(split[400:]) == {"test"}
    is_validation = to_unit_interval(hash_ids(pa.array(range(1, 401)))) < 1 / 8
    assert split[:400].tolist() == np.where(is_validation, "validation", "train").tolist()
    assert 30 <= is_validation.sum() <= 70  # 50 expected
    schema = schema_of("kdd98", table)
    assert schema.labels == ("donation",)
    assert len(schema.numeric) + len(schema.categorical) == 54
    assert schema.split_column == "split"


def test_kdd98_without_a_target_or_a_file(kdd98_folder: Path) -> None:
    with pytest.raises(UserError, match=r"cup98LRN.txt is one file; give the folder that holds cup98LRN, cup98VAL and"):
        load("kdd98", kdd98_folder / "cup98LRN.txt")
    targets = kdd98_folder / "valtargt.txt"
    targets.write_text(targets.read_text().replace("600,1,600\n", ""))
    with pytest.raises(UserError, match=r"valtargt.txt has no row for CONTROLN 600 of .*cup98val.zip"):
        load("kdd98", kdd98_folder)
    targets.unlink()
    with pytest.raises(UserError, match=r"--source: folder .* holds no file valtargt"):
        load("kdd98", kdd98_folder)


def shoppers_oracle(rows: Rows, company: int) -> list[dict[str, object]]:
    """The published preparation in plain Python; of equal amounts the alphabet decides."""
    lines = [dict(zip(SHOPPERS, row, strict=True)) for row in rows]
    lines = [line for line in lines if line["company"] == company and line["purchaseamount"] > 0]
    customers = []
    for customer in sorted({line["id"] for line in lines}):
        own = [line for line in lines if line["id"] == customer]
        start = min(line["date"] for line in own)
        day = [line for line in own if line["date"] == start]
        after = [line for line in own if 0 < (line["date"] - start).days <= 365]
        value: dict[str, object] = {
            "customer_id": customer,
            "first_purchase": start,
            "calibration_value": pytest.approx(sum(line["purchaseamount"] for line in day)),
        }
        for name in shoppers.CATEGORIES:
            given = [(-line["purchaseamount"], str(line[name])) for line in day if line[name] != ""]
            value[name] = min(given)[1] if given else "UNKNOWN"
        value["cltv_365"] = pytest.approx(sum(line["purchaseamount"] for line in after))
        customers.append(value)
    return customers


@pytest.fixture
def shoppers_rows() -> Rows:
    rng = np.random.default_rng(0)
    first = datetime.date(2012, 3, 2)
    rows = []
    for _ in range(600):
        day = first + datetime.timedelta(int(rng.choice([0, 1, 2, 30, 365, 366, 367, 400])))
        amount = float(rng.choice([-2.5, 0.0, 1.0, 1.5, 4.25]))
        measure = str(rng.choice(["OZ", "CT", "", ""]))
        chain, dept, category, brand = (int(code) for code in rng.integers(1, 12, 4))
        company = int(rng.choice([10000, 101200010]))
        rows.append((int(rng.integers(1, 60)), chain, dept, category, company, brand, day, 12.0, measure, 1, amount))
    return rows


@pytest.mark.parametrize("name", ["transactions.csv.gz", "transactions.csv"])
@pytest.mark.parametrize("company", [10000, 101200010])
def test_shoppers_follow_the_published_preparation(
    tmp_path: Path, shoppers_rows: Rows, name: str, company: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_BLOCK_BYTES", 2000)  # a purchase day stands in several batches
    write_csv(tmp_path / name, SHOPPERS, shoppers_rows)
    expected = shoppers_oracle(shoppers_rows, company)
    assert any(row["productmeasure"] == "UNKNOWN" for row in expected)
    table = load("acquire_valued_shoppers", tmp_path, company=company)
    assert table.to_pylist() == expected
    schema = schema_of("acquire_valued_shoppers", table)
    assert (schema.numeric, schema.labels) == (("calibration_value",), ("cltv_365",))
    assert schema.categorical == shoppers.CATEGORIES


def test_the_first_company_is_read_unless_another_is_named(tmp_path: Path, shoppers_rows: Rows) -> None:
    file = write_csv(tmp_path / "transactions.csv", SHOPPERS, shoppers_rows)
    name = "acquire_valued_shoppers"
    assert load(name, file) == load(name, file, company=10000) != load(name, file, company=101200010)
    with pytest.raises(
        UserError, match=r"--company=7: no purchase in .*transactions.csv; choose another, such as 10000"
    ):
        load(name, file, company=7)


CRITEO_ROW = [*(-1 for _ in criteo.NAMES[:-1]), "user"]


def criteo_row(**values: object) -> list[object]:
    return [values.get(name, value) for name, value in zip(criteo.NAMES, CRITEO_ROW, strict=True)]


@pytest.mark.parametrize("name", ["CriteoSearchData", "CriteoSearchData.gz"])
def test_criteo_labels_a_click_with_its_sale(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_BLOCK_BYTES", 128)  # several batches: the numbers of the clicks go on
    rows = [
        criteo_row(
            Sale=0, SalesAmountInEuro=-1, click_timestamp=1598891820, nb_clicks_1week=3, product_gender="unisex"
        ),
        criteo_row(
            Sale=1, SalesAmountInEuro=71.54, time_delay_for_conversion=5, product_price=71.54, product_title='a"b'
        ),
        criteo_row(Sale=1, SalesAmountInEuro=0),
        criteo_row(Sale=1, SalesAmountInEuro=-1),
        criteo_row(Sale=0, SalesAmountInEuro=12.5, product_price=3),
    ]
    write_csv(tmp_path / name, None, rows, "\t")
    table = load("criteo_ssc", tmp_path)
    assert table["customer_id"].to_pylist() == [1, 2, 3, 4, 5]
    assert table["cltv_30"].to_pylist() == [0.0, 71.54, 0.0, 0.0, 0.0]
    assert table["nb_clicks_1week"].to_pylist() == [3, None, None, None, None]
    assert table["product_gender"].to_pylist() == ["unisex", None, None, None, None]
    assert table["product_title"].to_pylist() == [None, 'a"b', None, None, None]
    assert len(table.column_names) == 1 + 19 + 1
    assert not {"product_price", "time_delay_for_conversion", "Sale", "SalesAmountInEuro"} & set(table.column_names)
    schema = schema_of("criteo_ssc", table)
    assert schema.numeric == ("nb_clicks_1week",)
    assert "product_category_7" in schema.categorical


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_hillstrom_keeps_outcomes_out_of_the_features(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"hillstrom.{kind}"
    if kind == "csv":
        write_csv(file, HILLSTROM, HILLSTROM_ROWS)
    else:
        columns = zip(*HILLSTROM_ROWS, strict=True)
        pq.write_table(pa.table(dict(zip(HILLSTROM, map(list, columns), strict=True))), file)
    table = load("hillstrom", tmp_path)
    assert table["customer_id"].to_pylist() == [1, 2]
    assert table["cltv_14"].to_pylist() == [0.0, 29.99]
    assert table["history_segment"].to_pylist() == ["2) $100 - $200", "3) $200 - $350"]
    recipe = public.DATASETS["hillstrom"].recipe
    assert table[recipe.treatment_column].to_pylist()[1] == recipe.control_value
    assert [table[name].to_pylist() for name in recipe.outcome_columns] == [[0, 1], [0, 1]]
    schema = schema_of("hillstrom", table)
    assert schema.numeric == ("recency", "history", "mens", "womens", "newbie")
    assert schema.categorical == ("history_segment", "zip_code", "channel")


# Lines three and four are one purchase, once in each sheet; so are five and six, of no known customer.
RETAIL_ROWS = (
    ("489434", "85048", "TOY, RED", 12, "2009-12-01 07:45:00", 6.95, "13085.0", "France"),
    ("C489449", "22087", "", -2, "2010-11-30 10:33:00", 2.5, "16321.0", "Spain"),
    ("536365", "POST", "POSTAGE", 1, "2010-12-01 08:26:00", 18.0, "17850.0", "France"),
    ("536365", "POST", "POSTAGE", 1, "2010-12-01 08:26:00", 18.0, "17850.0", "France"),
    *[("536366", "21777", "", 1, "2010-12-01 08:28:00", 1.0, "", "France")] * 2,
    ("581587", "22138", "\xa3 BOX", 3, "2011-12-09 12:50:00", 4.95, "12680.0", "France"),
)
RETAIL_LOG = [
    (13085, 83.4, "489434"),
    (16321, -5.0, "C489449"),
    (17850, 18.0, "536365"),
    (12680, 14.85, "581587"),
]


def write_retail(file: Path, rows: Rows) -> Path:
    with open(file, "w", newline="", encoding="latin-1") as output:
        csv.writer(output).writerows([RETAIL, *rows])
    return file


def retail_log(source: Path) -> list[tuple[int, float, str]]:
    table = load("online_retail_ii", source)
    assert table.column_names[:3] == ["customer_id", "timestamp", "amount"]
    return [(row["customer_id"], pytest.approx(row["amount"]), row["invoice"]) for row in table.to_pylist()]


def test_online_retail_takes_the_days_in_both_sheets_once(tmp_path: Path) -> None:
    assert retail_log(write_retail(tmp_path / "online_retail_II.csv", RETAIL_ROWS)) == RETAIL_LOG
    # Two equal lines of one invoice stand four times in the two sheets, however these are merged.
    last = ("540000", "21777", "", 1, "2010-12-09 20:01:00", 9.0, "17850.0", "France")
    rows = [*RETAIL_ROWS[:3], last, last, *RETAIL_ROWS[3:], last, last]
    expected = [*RETAIL_LOG[:3], *[(17850, 9.0, "540000")] * 2, RETAIL_LOG[3]]
    assert retail_log(write_retail(tmp_path / "four.csv", rows)) == expected


def test_online_retail_with_one_sheet_keeps_equal_lines(tmp_path: Path) -> None:
    once = ("540000", "21777", "", 1, "2010-12-02 10:00:00", 9.0, "17850.0", "France")
    log = retail_log(write_retail(tmp_path / "one.csv", [*RETAIL_ROWS, once]))
    assert log == [*RETAIL_LOG[:3], RETAIL_LOG[2], RETAIL_LOG[3], (17850, 9.0, "540000")]
    half = [*once[:-2], "17850.5", "France"]
    with pytest.raises(UserError, match=r"half.csv column Customer ID: .*17850.5"):
        retail_log(write_retail(tmp_path / "half.csv", [half]))


def test_online_retail_from_parquet(tmp_path: Path) -> None:
    names = ("invoice", "stock_code", "description", "quantity", "invoice_date", "price", "customer_id", "country")
    columns = dict(zip(names, map(list, zip(*RETAIL_ROWS, strict=True)), strict=True))
    columns["invoice_date"] = [datetime.datetime.fromisoformat(text) for text in columns["invoice_date"]]
    columns["customer_id"] = [int(float(text)) if text else None for text in columns["customer_id"]]
    columns["stock_code"] = pa.array(columns["stock_code"]).dictionary_encode()
    table = pa.table(columns | {"overlap": [False, False, True, False, True, False, False]})
    pq.write_table(table, tmp_path / "online_retail_ii.parquet")
    assert retail_log(tmp_path) == RETAIL_LOG

    pq.write_table(table.drop_columns("overlap"), tmp_path / "without.parquet")
    with pytest.raises(UserError, match=r"--source: column overlap is not in .*without.parquet"):
        retail_log(tmp_path / "without.parquet")


HILLSTROM_LINE = ",".join(map(str, HILLSTROM_ROWS[0]))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", r"column recency is not in line 1 of .*file.csv"),
        (",".join(HILLSTROM).encode(), r"file.csv holds no rows"),
        (
            ",".join(HILLSTROM).replace("spend", "spent").encode(),
            r"column spend is not in line 1 .*did you mean spent\?",
        ),
        (
            "\n".join([",".join(HILLSTROM), HILLSTROM_LINE, HILLSTROM_LINE + ",1"]).encode(),
            r"file.csv line 3: .*got 13",
        ),
        (
            "\n".join([",".join(HILLSTROM), HILLSTROM_LINE, HILLSTROM_LINE.replace("142.44", "much")]).encode(),
            r"file.csv line 3 column history: invalid value 'much' for double; give the publisher's file",
        ),
        (gzip.compress(HILLSTROM_LINE.encode() * 99)[:-20], r"file.csv (cannot be read|holds)"),
        (b"PK\x03\x04 and no more", r"file.csv cannot be read"),
        (b"PAR1 and no more", r"file.csv cannot be read"),
    ],
)
def test_another_file_is_named_with_its_line_and_column(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "file.csv"
    file.write_bytes(content)
    with pytest.raises(UserError, match=words):
        load("hillstrom", file)


def test_a_file_without_a_header_is_told_by_its_number_of_fields(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "clicks.tsv", None, [CRITEO_ROW[:-1]], "\t")
    with pytest.raises(UserError, match=r"clicks.tsv line 1 has 22 fields, expected 23"):
        load("criteo_ssc", file)
    write_csv(file, None, [CRITEO_ROW, criteo_row(SalesAmountInEuro="7,5")], "\t")
    with pytest.raises(UserError, match=r"clicks.tsv line 2 column SalesAmountInEuro: invalid value '7,5'"):
        load("criteo_ssc", file)
    with tarfile.open(tmp_path / "clicks.tar.gz", "w:gz") as archive:
        archive.add(file, "CriteoSearchData")
    with pytest.raises(UserError, match=r"clicks.tar.gz is a tar archive; unpack it"):
        load("criteo_ssc", tmp_path / "clicks.tar.gz")


def test_columns_that_are_not_read_count_too(tmp_path: Path, shoppers_rows: Rows) -> None:
    row = [
        "1.5x" if name == "purchaseamount" else value for name, value in zip(SHOPPERS, shoppers_rows[0], strict=True)
    ]
    file = write_csv(tmp_path / "transactions.csv", SHOPPERS, [*shoppers_rows[:3], row])
    with pytest.raises(UserError, match=r"transactions.csv line 5 column purchaseamount: invalid value '1.5x'"):
        load("acquire_valued_shoppers", file)


def test_a_zip_with_several_files_and_values_of_another_type(tmp_path: Path) -> None:
    file = tmp_path / "two.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a", "")
        archive.writestr("b", "")
    with pytest.raises(UserError, match=r"two.zip holds 2 files, expected one; unpack it"):
        load("hillstrom", file)
    columns = dict(zip(HILLSTROM, ([value] for value in HILLSTROM_ROWS[0]), strict=True)) | {"spend": ["much"]}
    pq.write_table(pa.table(columns), tmp_path / "text.parquet")
    with pytest.raises(UserError, match=r"text.parquet column spend: .*; give the publisher's file as it is"):
        load("hillstrom", tmp_path / "text.parquet")


def test_nothing_is_written_when_a_late_line_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[..., tuple[int, str]]
) -> None:
    monkeypatch.setattr(files, "_BLOCK_BYTES", 128)
    file = write_csv(tmp_path / "CriteoSearchData", None, [CRITEO_ROW] * 20, "\t")
    output = tmp_path / "clicks.parquet"
    arguments = ["--name=criteo_ssc", f"--output={output}", f"--source={file}"]
    with open(file, "a") as lines:
        lines.write("1\t2\n")
    code, error = call(main, *arguments)
    assert (code, error.count("\n")) == (2, 1)
    assert "CriteoSearchData line 21: Expected 23 columns, got 2" in error
    assert [path.name for path in tmp_path.iterdir()] == [file.name]

    write_csv(file, None, [CRITEO_ROW] * 20, "\t")
    code, report = call(main, *arguments)
    assert code == 0
    assert "20 customers written" in report
    assert "next: mean-jax-prepare" in report
    assert pq.read_metadata(output).num_rows == 20
