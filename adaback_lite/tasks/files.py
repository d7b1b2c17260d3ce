"""Problems from local files: .jsonl (one object a line), .json (one object or a list of them), .parquet.

Whatever is wrong with a file is said in one sentence that names the file and the line, for these files are the user's own.
"""

import json
from pathlib import Path

from ..errors import UserError


def read_jsonl(path: str | Path, fields: tuple[str, ...], may_be_empty: tuple[str, ...] = ()) -> list[dict[str, str]]:
    """The objects of a .jsonl file, in order, reduced to `fields`.

    Args:
        path: the file; one JSON object a line, in UTF-8. Lines of white space only are skipped.
        fields: names that every object must have, each a text. Other names are dropped.
        may_be_empty: those of `fields` that may be white space only.

    Raises UserError for a missing file, a folder, a file without objects, and a broken line: not UTF-8, not JSON, not an
    object, a field missing, not text, or empty. It names the file and the line, counted from 1.
    """
    path = _existing_file(Path(path))
    rows = []
    for n, line in enumerate(_bytes(path).split(b"\n"), 1):  # not splitlines: U+2028 may stand inside a JSON text
        if line.strip():
            where = f"{path}, line {n}"
            rows.append(_checked(_parsed(line, where), fields, may_be_empty, where))
    return _not_empty(rows, path)


def read_problems(path: str | Path, fields: tuple[str, ...], may_be_empty: tuple[str, ...] = ()) -> list[dict[str, str]]:
    """As `read_jsonl`, for a file of any of the three kinds; the name's ending decides. Errors name the object's number, from 1."""
    path = _existing_file(Path(path))
    if path.suffix == ".jsonl":
        return read_jsonl(path, fields, may_be_empty)
    if path.suffix == ".json":
        parsed = _parsed(_bytes(path), str(path))
        rows = parsed if isinstance(parsed, list) else [parsed]
    elif path.suffix == ".parquet":
        rows = _parquet(path, fields)
    else:
        raise UserError(f"{path} ends neither in .jsonl nor in .json nor in .parquet; rename it after what it holds.")
    return _not_empty([_checked(row, fields, may_be_empty, f"{path}, object {n}") for n, row in enumerate(rows, 1)], path)


def _existing_file(path: Path) -> Path:
    if path.is_dir():
        raise UserError(f"{path} is a folder where a file was expected; name the file in it.")
    if not path.is_file():
        if path.parent.is_dir():
            raise UserError(f"{path.parent} holds no file {path.name}; put it there or name another place by task.data.")
        raise UserError(f"{path} does not exist, nor does its folder; name another place by task.data.")
    return path


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes().removeprefix(b"\xef\xbb\xbf")  # the mark some editors put in front
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check its permissions.") from error


def _parsed(data: bytes, where: str):
    try:
        return json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: byte {error.start + 1} is not UTF-8; save the file in UTF-8.") from error
    except (ValueError, RecursionError) as error:  # RecursionError: a hundred thousand opening brackets
        reason = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise UserError(f"{where}: not JSON ({reason}); mend or remove it.") from error


def _parquet(path: Path, fields: tuple[str, ...]) -> list[dict]:
    import pyarrow
    from pyarrow import parquet  # late: it takes a while, and most problems come from .jsonl

    try:
        there = parquet.read_schema(path).names
        return parquet.read_table(path, columns=[f for f in fields if f in there]).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:  # ArrowInvalid is one of the former
        raise UserError(f"{path} is no parquet file that can be read; fetch it again.") from error


def _checked(row, fields: tuple[str, ...], may_be_empty: tuple[str, ...], where: str) -> dict[str, str]:
    if not isinstance(row, dict):
        raise UserError(f"{where}: a JSON object with the fields {', '.join(fields)} is due, not {_kind(row)}; mend or remove it.")
    for field in fields:
        if field not in row:
            raise UserError(f'{where}: the field "{field}" is missing; add it or remove the entry.')
        if not isinstance(row[field], str):
            raise UserError(f'{where}: the field "{field}" is {_kind(row[field])}, not text; put it in quotation marks or remove the entry.')
        if not row[field].strip() and field not in may_be_empty:
            raise UserError(f'{where}: the field "{field}" is empty; fill it or remove the entry.')
        try:
            row[field].encode("utf-8")
        except UnicodeEncodeError as error:  # "\ud800" alone is JSON, but no tokenizer takes it
            raise UserError(f'{where}: the field "{field}" holds half of a surrogate pair; mend or remove the entry.') from error
    return {field: row[field] for field in fields}


def _kind(value) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, (int, float)) else f"of the type {type(value).__name__}")


def _not_empty(rows: list, path: Path) -> list:
    if not rows:
        raise UserError(f"{path} is empty; put problems in it or name another file by task.data.")
    return rows
