"""The tables of a file as DataFrames: structured arrays in, pandas out, strings decoded from UTF-8."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas


def to_data_frame(table: np.ndarray) -> "pandas.DataFrame":
    """Return a structured array as a DataFrame, its strings decoded."""
    import pandas  # takes 0.4 s, and no build worker needs it

    columns = {}
    for name in table.dtype.names or ():
        column = table[name]
        columns[name] = (
            [text.decode("utf-8", errors="replace") for text in column.tolist()]
            if column.dtype.kind == "S"
            else np.array(column)
        )
    return pandas.DataFrame(columns)
