"""The laws of the house that a parser can check. test_layers.py applies them and tests them.

Every rule takes the modules of one package and returns its violations as readable lines.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

PACKAGE = "openvla_ros"

# Lower floors know nothing of higher ones. Rooms of one floor may use each other, without circles.
FLOORS: tuple[frozenset[str], ...] = (
    frozenset("__init__ errors types messages resources config action_specs".split()),
    frozenset({"control", "model"}),
    frozenset({"engine"}),
    frozenset({"policy", "policy_loading", "mock_policy"}),
    frozenset({"data"}),
    frozenset({"training", "evaluation"}),
    frozenset({"sim"}),
    frozenset({"ros", "msg", "srv", "action"}),
    frozenset({"cli", "__main__"}),
)
FLOOR_OF = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
BLIND_SIBLINGS = (
    {"control", "model"},
    {"policy", "mock_policy"},
    {"policy_loading", "mock_policy"},
)

# Rooms whose import must not bring torch: `backend:=mock` runs the whole node without it.
TORCH_FREE = (*sorted(FLOORS[0]), "control", "mock_policy", "ros")

ROS_PACKAGES = {"rclpy", "cv_bridge", "launch", "launch_ros", "ament_index_python", "std_srvs"}
ROS_PREFIXES = ("rosidl", "tf2_", "rosbag2", "rclpy_")
ROS_SUFFIXES = ("_msgs", "_interfaces")
GENERATED = tuple(f"{PACKAGE}.{kind}" for kind in ("msg", "srv", "action"))

# Time is an argument of control, and it reads and writes nothing.
NOT_IN_CONTROL = set(
    "time datetime calendar sched asyncio threading os io pathlib shutil tempfile glob subprocess "
    "socket csv sqlite3 pickle yaml".split()
)
FILE_CALLS = {"open", "load", "save", "savez", "loadtxt", "savetxt", "fromfile", "tofile", "memmap"}

# Of pickle itself the exceptions may be named: `torch.load(weights_only=True)` raises them.
PICKLE_EXCEPTIONS = {"PickleError", "UnpicklingError"}
UNSAFE_MODULES = {"cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve"}
VAGUE_NAMES = ("utils", "util", "helpers", "helper", "common", "misc")
RESERVED_NAMES = ("msg", "srv", "action")  # the generated interfaces live there
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80


@dataclass(frozen=True)
class Import:
    """One imported module, by its absolute name."""

    target: str
    line: int
    is_lazy: bool  # inside a function: it still has a direction, but costs nothing at import time


@dataclass(frozen=True)
class Module:
    """One source file."""

    name: str  # dotted, openvla_ros.ros.node
    path: Path
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        """The parsed source."""
        return ast.parse(self.text, filename=str(self.path))

    @property
    def is_package(self) -> bool:
        """Whether this is an __init__.py."""
        return self.path.name == "__init__.py"

    @property
    def room(self) -> str:
        """The part below the package: `control` for openvla_ros.control.twist."""
        return room_of(self.name)

    @cached_property
    def imports(self) -> list[Import]:
        """Every import but those for type checkers, in the order of the file."""
        return list(_imports(self, self.tree, is_lazy=False))

    def at(self, line: int) -> str:
        """Return `openvla_ros/ros/node.py:12`."""
        parts = self.path.parts
        return "/".join(parts[parts.index(PACKAGE) :]) + f":{line}"


def room_of(name: str) -> str:
    """Return the room of a dotted module name of this package."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def read_package(root: Path) -> list[Module]:
    """Return every module below `root/openvla_ros`."""
    modules = []
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        modules.append(Module(name, path, path.read_text(encoding="utf-8")))
    return modules


def _imports(module: Module, node: ast.AST, *, is_lazy: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from _imports_of_all(module, child.orelse, is_lazy)
        elif isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno, is_lazy) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = _absolute(module, child)
            # `from a import b` may import the module a.b; the caller decides which of the two.
            yield from (
                Import(f"{base}.{alias.name}", child.lineno, is_lazy) for alias in child.names
            )
        else:
            if isinstance(child, ast.Call) and (name := _dynamic_import(child)):
                yield Import(name, child.lineno, is_lazy)
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _imports(module, child, is_lazy=is_lazy or inside)


def _imports_of_all(module: Module, nodes: list[ast.stmt], is_lazy: bool) -> Iterator[Import]:
    yield from _imports(module, ast.Module(body=nodes, type_ignores=[]), is_lazy=is_lazy)


def _absolute(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = module.name.split(".") if module.is_package else module.name.split(".")[:-1]
    package = package[: len(package) - (node.level - 1)]
    return ".".join([*package, *([node.module] if node.module else [])])


def _dynamic_import(call: ast.Call) -> str | None:
    is_import = ast.unparse(call.func).split(".")[-1] in {"import_module", "__import__"}
    if is_import and call.args and isinstance(call.args[0], ast.Constant):
        return str(call.args[0].value)
    return None


def _inside(target: str) -> bool:
    return target == PACKAGE or target.startswith(PACKAGE + ".")


def unknown_rooms(modules: list[Module]) -> list[str]:
    """A module outside the plan has no floor, so nothing would hold its imports."""
    return [
        f"{m.at(1)}: `{m.room}` is no room of ARCHITECTURE; give it a floor in layer_rules.py"
        for m in modules
        if m.room not in FLOOR_OF
    ]


def imports_run_one_way(modules: list[Module]) -> list[str]:
    """Law 1: no import leads to a higher floor, and siblings that are blind stay so."""
    found = []
    for m in modules:
        for imp in m.imports:
            if not _inside(imp.target) or m.room not in FLOOR_OF:
                continue
            room = room_of(imp.target)
            # `from openvla_ros import __version__` names no room: it is the package itself.
            room = room if room in FLOOR_OF else "__init__"
            if FLOOR_OF[room] > FLOOR_OF[m.room]:
                found.append(f"{m.at(imp.line)}: `{m.room}` imports `{room}`, which is above it")
            elif room != m.room and any({m.room, room} <= pair for pair in BLIND_SIBLINGS):
                found.append(f"{m.at(imp.line)}: `{m.room}` and `{room}` are blind to each other")
    return found


def _graph(modules: list[Module], *, lazy: bool) -> dict[str, list[str]]:
    """Return module → modules it imports, both of this package."""
    names = {m.name for m in modules}
    edges: dict[str, list[str]] = {}
    for m in modules:
        targets = []
        for imp in m.imports:
            parent = imp.target.rpartition(".")[0]
            target = imp.target if imp.target in names else parent
            if target in names and target != m.name and (lazy or not imp.is_lazy):
                targets.append(target)
        edges[m.name] = sorted(set(targets))
    return edges


def no_circles(modules: list[Module]) -> list[str]:
    """Law 1: following imports, also lazy ones, never leads back."""
    edges, state, found = _graph(modules, lazy=True), {}, []

    def visit(name: str, trail: list[str]) -> None:
        state[name] = "open"
        for target in edges[name]:
            if state.get(target) == "open":
                circle = [*trail[trail.index(target) :], target]
                found.append("circle: " + " -> ".join(circle))
            elif target not in state:
                visit(target, [*trail, target])
        state[name] = "done"

    for name in edges:
        if name not in state:
            visit(name, [name])
    return found


def only_ros_imports_ros(modules: list[Module]) -> list[str]:
    """Law 1: rclpy, messages and cv_bridge are known in ros/ alone."""
    found = []
    for m in modules:
        for imp in m.imports:
            top = imp.target.split(".")[0]
            is_ros = top in ROS_PACKAGES or top.startswith(ROS_PREFIXES)
            is_ros = is_ros or top.endswith(ROS_SUFFIXES)
            is_ros = is_ros or any((imp.target + ".").startswith(g + ".") for g in GENERATED)
            if is_ros and m.room != "ros":
                found.append(f"{m.at(imp.line)}: imports {imp.target}; only ros/ may")
    return found


def _ancestors(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def no_torch_where_it_is_not_needed(modules: list[Module]) -> list[str]:
    """Importing these rooms never reaches `import torch`, not even through another module."""
    edges = _graph(modules, lazy=False)
    direct = {
        m.name
        for m in modules
        if any(
            i.target.split(".")[0] in {"torch", "transformers"} and not i.is_lazy for i in m.imports
        )
    }
    found = []
    for m in modules:
        if m.room not in TORCH_FREE:
            continue
        seen, stack = set(), [(m.name, m.name)]
        while stack:
            name, trail = stack.pop()
            if name in seen:
                continue
            seen.add(name)
            if name in direct:
                found.append(f"{m.at(1)}: importing it imports torch: {trail}")
                break
            # Importing a.b.c runs a and a.b first.
            after = [*edges.get(name, []), *(a for a in _ancestors(name) if a in edges)]
            stack += [(target, f"{trail} -> {target}") for target in after]
    return found


def control_is_a_clean_room(modules: list[Module]) -> list[str]:
    """Law 5: control/ knows numpy and its arguments; no torch, no files, no clock."""
    found = []
    for m in modules:
        if m.room != "control":
            continue
        for imp in m.imports:
            top = imp.target.split(".")[0]
            is_plain = top in sys.stdlib_module_names and top not in NOT_IN_CONTROL
            if not (is_plain or top in {"numpy", PACKAGE}):
                found.append(f"{m.at(imp.line)}: control imports {imp.target}")
        for node in ast.walk(m.tree):
            if isinstance(node, ast.Call) and _is_file_call(node):
                found.append(f"{m.at(node.lineno)}: control calls {ast.unparse(node.func)}")
    return found


def _is_file_call(call: ast.Call) -> bool:
    *owner, name = ast.unparse(call.func).split(".")
    return name in FILE_CALLS and (not owner or owner[0] in {"np", "numpy"})


def sizes(modules: list[Module]) -> list[str]:
    """A file of more than 400 lines, or a function of more than 80, is split by noun."""
    found = []
    for m in modules:
        lines = len(m.text.splitlines())
        if lines > MAX_FILE_LINES:
            found.append(f"{m.at(1)}: {lines} lines, at most {MAX_FILE_LINES}")
        for node in ast.walk(m.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    found.append(
                        f"{m.at(node.lineno)}: {node.name} has {lines} lines, "
                        f"at most {MAX_FUNCTION_LINES}"
                    )
    return found


def names_say_something(modules: list[Module]) -> list[str]:
    """No utils, helpers or common; and nothing that hides the generated interfaces."""
    found = []
    for m in modules:
        for part in m.name.split(".")[1:]:
            if part in VAGUE_NAMES or part.endswith(tuple("_" + n for n in VAGUE_NAMES)):
                found.append(f"{m.at(1)}: `{part}` says nothing about what is inside")
            if part in RESERVED_NAMES:
                found.append(f"{m.at(1)}: `{part}` is where generated interfaces live")
    return found


def nothing_runs_code_from_a_checkpoint(modules: list[Module]) -> list[str]:
    """No remote code, no pickle: a downloaded file is data."""
    found = []
    for m in modules:
        for imp in m.imports:
            if imp.target.split(".")[0] in UNSAFE_MODULES:
                found.append(f"{m.at(imp.line)}: imports {imp.target}, which runs what it reads")
            if imp.target.startswith("pickle.") and imp.target[7:] not in PICKLE_EXCEPTIONS:
                found.append(f"{m.at(imp.line)}: imports {imp.target}, which runs what it reads")
        for node in ast.walk(m.tree):
            if isinstance(node, ast.Call):
                found += [f"{m.at(node.lineno)}: {fault}" for fault in _unsafe_call(node)]
            elif isinstance(node, ast.alias) and node.name == "pickle" and node.asname:
                found.append(f"{m.at(node.lineno)}: pickle under the name {node.asname}")
            elif _is_pickle_function(node):
                found.append(f"{m.at(node.lineno)}: {ast.unparse(node)} runs what it reads")
    return found


def _is_pickle_function(node: ast.AST) -> bool:
    is_of_pickle = isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle"
    return is_of_pickle and node.attr not in PICKLE_EXCEPTIONS


def _unsafe_call(call: ast.Call) -> Iterator[str]:
    keywords = {k.arg: ast.unparse(k.value) for k in call.keywords}
    name = ast.unparse(call.func)
    for keyword in ("trust_remote_code", "allow_pickle"):
        if keywords.get(keyword, "False") != "False":
            yield f"{keyword}={keywords[keyword]}"
    if name == "torch.load" and keywords.get("weights_only") != "True":
        yield "torch.load without weights_only=True"


RULES: tuple[Callable[[list[Module]], list[str]], ...] = (
    unknown_rooms,
    imports_run_one_way,
    no_circles,
    only_ros_imports_ros,
    no_torch_where_it_is_not_needed,
    control_is_a_clean_room,
    sizes,
    names_say_something,
    nothing_runs_code_from_a_checkpoint,
)
