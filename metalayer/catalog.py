"""Every table there is: contracts found in `contracts/`, paired with their SELECTs in `sql/`.

Adding a table means adding a contract and a SELECT of the same stem; nothing here changes. Bronze
tables are derived from the `Source` of a silver contract. Whatever does not fit together fails
here, at import, naming the file and the fix.

Does not belong here: how a table is built (`jobs.py`) or shown.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from metalayer import contracts
from metalayer.contracts.contract import (
    Contract,
    TableSpec,
    bronze_spec,
    pandera_schema,
    table_spec,
)
from metalayer.definition_files import definitions_stamp
from metalayer.errors import ContractError, UsageError
from metalayer.governance.verdict import refuse_unprotected
from metalayer.lineage.select import Reach, Select, parse_select
from metalayer.settings import PROJECT_ROOT

LAYERS = ("bronze", "silver", "gold")
#: Raised when the same contract and SELECT are built into other rows, so that months are rebuilt.
_BUILD_FORMAT = 1


@dataclass(frozen=True)
class Catalog:
    """All tables.

    Attributes:
        specs: Full name -> table, upstream before downstream.
        selects: Full name -> the SELECT that fills it (silver and gold).
        code_versions: Full name -> fingerprint of everything a build of the table depends on
            besides its inputs' rows: "contract.select.functions". Rewording (comments, docstrings,
            meanings, owners) is no reason to rebuild.
    """

    specs: Mapping[str, TableSpec]
    selects: Mapping[str, Select]
    code_versions: Mapping[str, str]

    @property
    def sources(self) -> dict[str, TableSpec]:
        """Source name -> the silver table it feeds."""
        return {s.source.name: s for s in self.specs.values() if s.source and s.layer == "silver"}

    def inputs(self, table: str) -> Mapping[str, Reach]:
        """The tables whose rows `table` is made from, and how far back each is read."""
        return self.selects[table].inputs if table in self.selects else {}

    def upstream(self, table: str) -> Mapping[str, Reach]:
        """The tables that must be there before `table`: its inputs, and what its keys point at.

        A typed table's references only warn, so these do not hold it up.
        """
        return _upstream(self.specs[table], self.inputs(table))

    def followed_by(self, table: str) -> str | None:
        """The column by which tables made from `table` follow it; None if none, or several."""
        columns = {
            spec.rows_follow
            for name, spec in self.specs.items()
            if spec.rows_follow is not None and table in self.inputs(name)
        }
        return columns.pop() if len(columns) == 1 else None

    def made_from(self, table: str) -> list[str]:
        """The table and every table it is made from, near or far, upstream first."""
        found = {table}
        for name in reversed(list(self.specs)):
            if name in found:
                found.update(self.inputs(name))
        return [name for name in self.specs if name in found]

    def spec(self, table: str) -> TableSpec:
        """The table of that full name.

        Raises:
            UsageError: listing the tables, when there is none.
        """
        if table not in self.specs:
            raise UsageError(f"There is no table '{table}'", f"Tables are {', '.join(self.specs)}")
        return self.specs[table]


#: As the files were when this process began to read them.
LOADED_STAMP = ""


@cache
def catalog() -> Catalog:
    """Find and check every table.

    Raises:
        ContractError: naming the file and the fix.
    """
    global LOADED_STAMP
    LOADED_STAMP = definitions_stamp()
    declared = [table_spec(contract) for contract in _contracts()]
    _refuse_shared_names(declared)
    derived = [bronze_spec(spec) for spec in declared if spec.source is not None]
    specs = {spec.full_name: spec for spec in (*derived, *declared)}
    selects = {spec.full_name: _select(spec, specs) for spec in declared}
    _refuse_orphans(specs)
    for spec in declared:
        _check_references(spec, specs, selects[spec.full_name])
    order = _ordered(specs, selects)
    refuse_unprotected(specs, selects)
    return Catalog(
        {name: specs[name] for name in order},
        selects,
        {name: _code_version(specs[name], selects.get(name)) for name in order},
    )


def is_outdated() -> bool:
    """Whether contracts or SELECTs have changed on disk since this process read them."""
    return bool(LOADED_STAMP) and definitions_stamp() != LOADED_STAMP


def _contracts() -> list[type[Contract]]:
    found: list[type[Contract]] = []
    for layer in ("silver", "gold"):
        package = importlib.import_module(f"{contracts.__name__}.{layer}")
        for module_info in pkgutil.iter_modules(package.__path__):
            module = importlib.import_module(f"{package.__name__}.{module_info.name}")
            own = [
                value
                for value in vars(module).values()
                if isinstance(value, type)
                and issubclass(value, Contract)
                and value.__module__ == module.__name__
            ]
            if len(own) != 1:
                raise ContractError(
                    f"contracts/{layer}/{module_info.name}.py has {len(own)} contracts",
                    "Keep one class deriving from Contract in each file",
                )
            found.append(own[0])
    return found


def _select(spec: TableSpec, specs: Mapping[str, TableSpec]) -> Select:
    path = PROJECT_ROOT / "sql" / spec.layer / f"{spec.name}.sql"
    if not path.is_file():
        raise ContractError(
            f"contracts/{spec.layer}/{spec.name}.py has no SELECT",
            f"Add sql/{spec.layer}/{spec.name}.sql, or remove the contract",
        )
    return parse_select(path, spec, specs)


def _refuse_orphans(specs: Mapping[str, TableSpec]) -> None:
    for layer in ("silver", "gold"):
        for path in sorted((PROJECT_ROOT / "sql" / layer).glob("*.sql")):
            if f"{layer}.{path.stem}" not in specs:
                raise ContractError(
                    f"sql/{layer}/{path.name} has no contract",
                    f"Add contracts/{layer}/{path.stem}.py, or remove the SELECT",
                )


def _refuse_shared_names(declared: Iterable[TableSpec]) -> None:
    owners: dict[str, TableSpec] = {}
    for spec in declared:
        for name in (spec.source.name,) if spec.source else ():
            if name in owners:
                raise ContractError(
                    f"{spec.full_name} and {owners[name].full_name} are both fed by {name}",
                    "Give each source to one contract",
                )
            owners[name] = spec


def _check_references(spec: TableSpec, specs: Mapping[str, TableSpec], select: Select) -> None:
    where = f"contracts/{spec.layer}/{spec.name}.py"
    pointers = [(c.references.table, c.references.column) for c in spec.columns if c.references]
    pointers += [(t, c) for t, _, c in (p.rpartition(".") for p in spec.sums_from.values())]
    if spec.rows_from is not None:
        pointers.append(
            (spec.rows_from, specs[spec.rows_from].key[0] if spec.rows_from in specs else "")
        )
    if spec.rows_follow is not None:
        pointers += [(table, spec.rows_follow) for table in (spec.full_name, *select.inputs)]
    for table, column in pointers:
        if table not in specs:
            raise ContractError(
                f"{where} names the unknown table '{table}'", f"Known are {', '.join(specs)}"
            )
        if column not in (c.name for c in specs[table].columns):
            columns = ", ".join(c.name for c in specs[table].columns)
            raise ContractError(
                f"{where} names the unknown column '{table}.{column}'", f"Known are {columns}"
            )


def _upstream(spec: TableSpec, inputs: Mapping[str, Reach]) -> dict[str, Reach]:
    found = dict(inputs)
    if spec.layer == "gold":
        for c in spec.columns:
            if c.references is not None:
                found.setdefault(c.references.table, Reach.SAME)
    return found


def _ordered(specs: Mapping[str, TableSpec], selects: Mapping[str, Select]) -> list[str]:
    """Tables by layer, and in it each behind what it reads and what its keys point at."""
    graph = {
        name: sorted(_upstream(specs[name], selects[name].inputs if name in selects else {}))
        for name in sorted(specs)
    }
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        raise ContractError(
            f"These tables read each other in a circle: {' -> '.join(error.args[1])}",
            "Break the circle in one of their SELECTs",
        ) from error
    rank = {name: place for place, name in enumerate(order)}
    return sorted(specs, key=lambda name: (LAYERS.index(specs[name].layer), rank[name]))


def _code_version(spec: TableSpec, select: Select | None) -> str:
    """Fingerprints of the contract, the SELECT and MetaLayer's own part, joined by dots."""
    columns = [replace(c, meaning="") for c in spec.columns]
    if select is None:
        assert spec.source is not None
        kept = (spec.source.kind, spec.source.month_from, spec.source.on_new_column)
        return ".".join(map(_digest, (repr((columns, kept)), "", str(_BUILD_FORMAT))))
    assert spec.path is not None
    contract = "\n".join([_rules_in(spec.path), repr(columns), *_rules(spec)])
    text = select.tree.sql("postgres", comments=False)
    return ".".join(map(_digest, (contract, text, f"{_BUILD_FORMAT} {_functions()}")))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _rules(spec: TableSpec) -> list[str]:
    """What the columns are checked for: the values may come from another file than the contract."""
    return [
        repr((name, check.name, {k: _in_order(v) for k, v in (check.statistics or {}).items()}))
        for name, column in pandera_schema(spec).columns.items()
        for check in column.checks
    ]


def _in_order(value: object) -> object:
    # A set prints in another order in every process.
    return sorted(value, key=repr) if isinstance(value, set | frozenset) else value


@cache
def _functions() -> str:
    """The SQL functions that every SELECT may call, as text."""
    path = Path(__file__).parent / "warehouse" / "functions.sql"
    lines = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith("--"))


#: What a contract says of its table that makes the same rows another month.
_FACTS_OF_ROWS = (
    *("max_reject_rate", "max_rejects", "rows_from", "rows_follow", "sums_from"),
    "unknown_member",
)

#: What a column says of itself that makes no row another.
_FACTS_FOR_PEOPLE = ("free_text", "sensitivity", "declassified", "identifies")


def _rules_in(path: Path) -> str:
    """A contract's file in a normal form, without what changes no row: comments and meanings."""
    return ast.dump(_OnlyRules().visit(ast.parse(path.read_text(encoding="utf-8"))))


class _OnlyRules(ast.NodeTransformer):
    """Takes docstrings, meanings, owners and facts of the files out of a contract."""

    def visit_Module(self, node: ast.Module) -> ast.AST:
        bare = self._bare(node)
        # What only served a fact that is left out need not be imported either.
        used = {name.id for name in ast.walk(bare) if isinstance(name, ast.Name)}
        for statement in [s for s in node.body if isinstance(s, ast.ImportFrom)]:
            statement.names = [
                a for a in statement.names if (a.asname or a.name).partition(".")[0] in used
            ]
            if not statement.names:
                node.body.remove(statement)
        return bare

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self._bare(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST | None:
        if node.name == "Source":
            return None
        if node.name == "Table":
            node.body = [
                fact
                for fact in node.body
                if isinstance(fact, ast.Assign)
                and any(isinstance(t, ast.Name) and t.id in _FACTS_OF_ROWS for t in fact.targets)
            ]
        return self._bare(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if isinstance(node.func, ast.Name) and node.func.id in ("column", "key", "month_column"):
            node.args = []
            node.keywords = [k for k in node.keywords if k.arg not in _FACTS_FOR_PEOPLE]
        return self.generic_visit(node)

    def _bare(self, node: ast.Module | ast.ClassDef | ast.FunctionDef) -> ast.AST:
        if node.body and ast.get_docstring(node):
            node.body = node.body[1:]
        return self.generic_visit(node)
