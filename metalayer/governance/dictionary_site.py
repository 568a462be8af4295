"""The dictionary as a static site: pages handed to Sphinx, a theme and a search of our own.

Every file that the site needs lies in its folder, so it works from a disk as from any web server.
Sphinx's own search knows no typos; Fuse.js (vendored) does, over records made with the pages.

Does not belong here: what the pages say (`dictionary_pages.py`).
"""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from itertools import groupby
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace, patch_docutils

from metalayer.errors import ContractError, UsageError
from metalayer.governance.dictionary import Dictionary
from metalayer.governance.dictionary_pages import index_page, search_records, table_page

_SITE = Path(__file__).parent / "site"
#: Tells a folder with a dictionary in it from one with a person's files.
_MARK = Path("_static") / "records.js"
#: What Sphinx writes for itself, or for pages of its own theme.
_LEFT_OUT = (".doctrees", ".buildinfo", "objects.inv", "_sources")
_OURS = ("dictionary.css", "dictionary.js", "records.js", "fuse.js", "fuse.LICENSE")


def build_site(entries: Dictionary, out: Path) -> Path:
    """Write the dictionary into the folder `out`, in place of an earlier one.

    Returns:
        Its first page.

    Raises:
        UsageError: when `out` has something else in it.
        ContractError: when a page cannot be made, with what the generator says.
    """
    _refuse_other_files(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".docs-", dir=out.parent) as folder:
        pages, files, made = (Path(folder) / name for name in ("pages", "files", "made"))
        _write_pages(entries, pages)
        _write_files(entries, files)
        _generate(entries, pages, files, made)
        for name in _LEFT_OUT:
            _remove(made / name)
        for path in (made / "_static").iterdir():
            if path.name not in _OURS:
                _remove(path)
        made.chmod(0o755)
        _remove(out)
        made.rename(out)
    return out / "index.html"


def _write_pages(entries: Dictionary, pages: Path) -> None:
    pages.mkdir()
    (pages / "index.rst").write_text(index_page(entries), encoding="utf-8")
    for name, entry in entries.tables.items():
        (pages / f"{name}.rst").write_text(table_page(entries, entry), encoding="utf-8")


def _write_files(entries: Dictionary, files: Path) -> None:
    """What lies beside the pages: the SELECTs, the search and its records."""
    static = files / "_static"
    static.mkdir(parents=True)
    for name, entry in entries.tables.items():
        if entry.select is not None:
            path = files / "sql" / f"{name.replace('.', '/')}.sql"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{entry.select}\n", encoding="utf-8")
    # A page opened from a disk may load scripts, but no modules and no data.
    records = json.dumps(search_records(entries), ensure_ascii=False, separators=(",", ":"))
    records = records.replace("</", r"<\/")
    (static / "records.js").write_text(f"window.RECORDS = {records};\n", encoding="utf-8")
    fuse = (_SITE / "vendor" / "fuse.basic.min.cjs").read_text(encoding="utf-8")
    wrapped = f"const module = {{ exports: {{}} }};\n{fuse}\nwindow.Fuse = module.exports;"
    (static / "fuse.js").write_text(f"(() => {{ {wrapped} }})();\n", encoding="utf-8")
    shutil.copyfile(_SITE / "vendor" / "fuse.LICENSE", static / "fuse.LICENSE")


def _generate(entries: Dictionary, pages: Path, files: Path, made: Path) -> None:
    layers = groupby(entries.tables, key=lambda name: name.partition(".")[0])
    warnings = io.StringIO()
    settings = {
        "project": "MetaLayer dictionary",
        "html_theme": "theme",
        "html_theme_path": [str(_SITE)],
        "html_extra_path": [str(files)],
        "html_context": {"layers": [(layer, list(names)) for layer, names in layers]},
        "html_copy_source": False,
        "html_use_index": False,
        "html_show_sourcelink": False,
        "html_domain_indices": False,
        "html_last_updated_fmt": None,
        "smartquotes": False,
        "nitpicky": True,
    }
    # What Sphinx registers with docutils, which is global, is taken back at the end.
    with patch_docutils(), docutils_namespace():
        app = Sphinx(
            srcdir=pages,
            confdir=None,
            outdir=made,
            doctreedir=made / ".doctrees",
            buildername="html",
            confoverrides=settings,
            status=None,
            warning=warnings,
            freshenv=True,
        )
        # Sphinx's index would be made, and shown by nobody.
        app.builder.search = False  # type: ignore[attr-defined]
        app.build()
    if app.statuscode or warnings.getvalue().strip():
        raise ContractError(
            f"The dictionary has a page that Sphinx refuses: {warnings.getvalue().strip()}",
            "Word what the contract says another way, and report it: any text should do.",
        )


def _refuse_other_files(out: Path) -> None:
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UsageError(f"{out} is no folder", "Give --out a folder, which need not exist.")
    if out.is_dir() and any(out.iterdir()) and not (out / _MARK).is_file():
        raise UsageError(
            f"{out} has other files in it, which writing the dictionary would remove",
            "Give --out an empty folder, a new one, or one with an earlier dictionary.",
        )


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
