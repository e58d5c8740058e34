"""KDD Cup 1998: donations after one mailing of a charity (BASELINES.md section 8.2)."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mean_jax.data import hashing
from mean_jax.data.prepare import PrepareOptions
from mean_jax.data.public import files
from mean_jax.data.public.base import DataCard, PublicDataset, Recipe
from mean_jax.errors import UserError

ID = "CONTROLN"
TARGET = "TARGET_D"
LABEL = "donation"
VALIDATION_SHARE = 1 / 8  # of the learning file: 7:1, as elsewhere
# fmt: off
_CATEGORICAL = (
    "ODATEDW", "OSOURCE", "STATE", "DOMAIN", "CLUSTER", "GENDER", "MAXADATE", "MINRDATE", "LASTDATE", "FISTDATE",
    "RFA_2A",
)
_NUMERIC = (
    "AGE", "NUMCHLD", "INCOME", "WEALTH1", "HIT", "MBCRAFT", "MBGARDEN", "MBBOOKS", "MBCOLECT", "MAGFAML", "MAGFEM",
    "MAGMALE", "PUBGARDN", "PUBCULIN", "PUBHLTH", "PUBDOITY", "PUBNEWFN", "PUBPHOTO", "PUBOPP", "RFA_2F", "CARDPROM",
    "NUMPROM", "CARDPM12", "NUMPRM12", "RAMNTALL", "NGIFTALL", "MINRAMNT", "MAXRAMNT", "LASTGIFT", "AVGGIFT",
)
# fmt: on
# Columns that become true or false, and the letters that mean true.
_FLAGS: Mapping[str, tuple[str, ...]] = {
    "MAILCODE": ("B",),
    "NOEXCH": ("X", "1"),
    **dict.fromkeys(("RECINHSE", "RECP3", "RECPGVG", "RECSWEEP"), ("X",)),
    "HOMEOWNR": ("H",),
    **dict.fromkeys(("CHILD03", "CHILD07", "CHILD12", "CHILD18"), ("M", "F", "B")),
}
_FEATURES = {
    **dict.fromkeys(_CATEGORICAL, pa.string()),
    "TCODE": pa.int64(),
    "ZIP": pa.string(),
    **dict.fromkeys(_NUMERIC, pa.float64()),
    **dict.fromkeys(_FLAGS, pa.string()),
}
# A missing value is a field of blanks, as wide as the column.
_BLANKS = tuple(" " * width for width in range(12))


def read(source: Path) -> pa.RecordBatchReader:
    """Returns the customer table of both files: customer_id, split, 54 features, donation (dollars).

    As published, but that numbers stay as they are (the model's input encoder takes logarithms and quantiles) and that
    an eighth of the learning file, drawn by a hash of the id, is the validation split; the cup's own validation file
    is the test split.

    Args:
      source: the folder with cup98LRN, cup98VAL and valtargt, each as text or zipped.

    Raises:
      UserError: a file is missing or of another layout, or a customer of cup98VAL is not in valtargt.
    """
    if source.expanduser().is_file():
        raise UserError(
            f"{files.FLAG}: {source} is one file; give the folder that holds cup98LRN, cup98VAL and valtargt"
        )
    target = {ID: pa.int64(), TARGET: pa.float64()}
    learning_file, validation_file, target_file = (
        files.find_source(source, stem) for stem in ("cup98lrn", "cup98val", "valtargt")
    )
    learning = files.read_text(learning_file, target | _FEATURES, null_values=_BLANKS)
    validation = files.read_text(validation_file, {ID: pa.int64()} | _FEATURES, null_values=_BLANKS)
    targets = files.read_text(target_file, target)
    rows = pc.index_in(validation[ID], value_set=targets[ID].combine_chunks())
    if rows.null_count:
        unknown = validation[ID].filter(rows.is_null())[0]
        raise UserError(
            f"{files.FLAG}: {target_file} has no row for {ID} {unknown} of {validation_file}; give the pair"
        )
    validation = validation.append_column(TARGET, targets[TARGET].take(rows))
    is_validation_B = hashing.to_unit_interval(hashing.hash_ids(learning[ID].combine_chunks())) < VALIDATION_SHARE
    learning_split_B = np.where(is_validation_B, "validation", "train")
    tables = [
        _customers(learning, pa.array(learning_split_B)),
        _customers(validation, pa.repeat("test", len(validation))),
    ]
    return pa.concat_tables(tables).to_reader()


def _customers(table: pa.Table, split: pa.Array) -> pa.Table:
    code = table["TCODE"]
    return pa.table(
        {
            "customer_id": table[ID],
            "split": split.cast(pa.string()),
            **{name: pc.utf8_trim_whitespace(table[name]) for name in _CATEGORICAL},
            # Codes of two persons, such as 28028 for ladies, keep the part that says so.
            "TCODE": pc.if_else(pc.greater(code, 1000), pc.divide(code, 1000), code).cast(pa.string()),
            "ZIP": pc.utf8_slice_codeunits(table["ZIP"], 0, 5),  # some end in a dash
            **{name: table[name] for name in _NUMERIC},
            **{name: pc.is_in(table[name], pa.array(letters)) for name, letters in _FLAGS.items()},
            LABEL: table[TARGET],
        }
    )


DATASET = PublicDataset(
    card=DataCard(
        title="KDD Cup 1998: who of a charity's lapsed donors gives after a mailing, and how much",
        source="Parsa and the Paralyzed Veterans of America, UCI KDD Archive; from the user's copy",
        licence="for research and education under the terms in the cup's own documentation",
        rows=191_779,
        customers=191_779,
        label="donation after the mailing of June 1997, as published: about 0.95 are 0",
        traps=(
            "the test split is the cup's validation file; published results are on it",
            "the profit of a mailing is the sum of donation - 0.68 (dollars a letter costs) over the letters sent",
            "categories that are seen less than 100 times count as unknown in the published preparation",
            "the label has no horizon in days; its columns in scores and reports are called donation",
        ),
    ),
    recipe=Recipe(prepare=PrepareOptions(label_columns=(LABEL,), split_column="split", min_category_count=100)),
    read=read,
    official_files="the folder with cup98LRN.txt, cup98VAL.txt and valtargt.txt (KDD Cup 1998, UCI KDD Archive)",
)
