"""A griffe extension that prepares the reference for readers.

Each class gets one list of its attributes, also of the inherited ones, described as in the
sections "Attributes" of the docstrings. attrs classes get the signature of their constructor.
In other classes, a property with a docstring gets a heading, as a method does.
Methods with `**options` show each option. A method without a docstring gets the docstring of the
method that it overrides.
Private base classes are hidden.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from griffe import (
    Alias,
    Attribute,
    Class,
    Docstring,
    DocstringAttribute,
    DocstringParameter,
    DocstringSection,
    DocstringSectionAttributes,
    DocstringSectionParameters,
    Extension,
    Function,
    Module,
    Parameter,
    ParameterKind,
    Parameters,
)

_HIDDEN = {"HasMessageData", "Extensible", "Uncopyable", "OpenEnum", "Listing", "Generic"}
_HIDDEN |= {"ABC", "SharedTransport", "Shared"}
_INTERNAL = {"type_in_json", "monotonic"}
_FACTORY = re.compile(r"factory=(\w+)")
_DEFAULT = re.compile(r"default=([\w.\"'-]+)")
_OPTIONS = re.compile(r"Unpack\[(\w+)\]")


class ReferenceDocs(Extension):
    """See the module docstring."""

    def on_package(self, *, pkg: Module, **_: Any) -> None:
        """Prepare all classes of a package."""
        classes = list(_classes(pkg))
        lines = [_lines_of(each) for each in classes]
        for each in classes:
            if "errors" in each.module.name and "__init__" in each.members:
                each.del_member("__init__")  # Users do not create errors.
            if _is_attrs(each) and "__init__" not in each.members:
                each.set_member("__init__", _constructor(each))
            _inherit_docstrings(each)
        methods = [_hidden_methods(each) for each in classes]
        for each, attributes, inherited in zip(classes, lines, methods, strict=True):
            for name, method in inherited.items():
                each.set_member(name, Alias(name, method, parent=each))
            each.bases = [base for base in each.bases if _is_shown(str(base))]
            text = "" if each.docstring is None else each.docstring.value
            each.docstring = _ClassDocstring(text, parent=each)
            each.docstring.attributes = attributes
        options = {each.name: attributes for each, attributes in zip(classes, lines, strict=True)}
        for each in classes:
            for method in each.members.values():
                if isinstance(method, Function):
                    _show_options(method, options)
        for each in classes:
            for name in [*each.members]:
                if each[name].is_attribute and not _has_heading(each, each[name]):
                    each.del_member(name)


class _ClassDocstring(Docstring):
    attributes: list[DocstringAttribute]

    def parse(self, *args: Any, **options: Any) -> list[DocstringSection]:
        sections = [
            section
            for section in super().parse(*args, **options)
            if not isinstance(section, DocstringSectionAttributes)
        ]
        if self.attributes:
            sections.append(DocstringSectionAttributes(self.attributes))
        return sections


class _MethodDocstring(Docstring):
    options: list[DocstringParameter]

    def parse(self, *args: Any, **options: Any) -> list[DocstringSection]:
        sections = super().parse(*args, **options)
        shown = [each for each in sections if isinstance(each, DocstringSectionParameters)]
        if shown:
            shown[0].value.extend(self.options)
        else:
            sections.insert(1, DocstringSectionParameters(self.options))
        return sections


def _show_options(method: Function, options: dict[str, list[DocstringAttribute]]) -> None:
    """Replace `**options` in the signature and, except for async versions, in the parameters."""
    if "options" not in method.parameters or method.docstring is None:
        return
    found = _OPTIONS.fullmatch(str(method.parameters["options"].annotation))
    if found is None:
        return
    del method.parameters["options"]
    shown = [
        DocstringParameter(
            each.name, annotation=each.annotation, description=each.description, value="None"
        )
        for each in options[found[1]]
    ]
    for each in shown:
        parameter = Parameter(each.name, annotation=each.annotation, default="None")
        parameter.kind = ParameterKind.keyword_only
        method.parameters.add(parameter)
    text = method.docstring.value
    if not text.startswith("The async version of"):
        method.docstring = _MethodDocstring(text, parent=method, parser="google")
        method.docstring.options = shown


def _classes(module: Module) -> Iterator[Class]:
    for member in tuple(module.members.values()):
        if member.is_alias:
            continue
        if isinstance(member, Class):
            yield member
        elif isinstance(member, Module):
            yield from _classes(member)


def _lines_of(owner: Class) -> list[DocstringAttribute]:
    """Return the public attributes of a class, its own first, then the inherited ones."""
    chain = [owner, *_bases(owner)]
    texts: dict[str, str] = {}
    for each in chain:
        for name, text in _described(each):
            texts.setdefault(name, text)
    lines: dict[str, DocstringAttribute] = {}
    for each in chain:
        for name, member in each.members.items():
            text = texts.get(name, "")
            is_internal = name[0] == "_" or name in _INTERNAL
            if is_internal or name in lines or not isinstance(member, Attribute):
                continue
            if _has_heading(each, member):
                continue
            if not text and _is_set_in_init(each, member):
                continue
            is_member = "Enum" in str(owner.bases) and member.value is not None
            if is_member:
                text = f"`{member.value}`: {text}"
            annotation = None if is_member else member.annotation
            lines[name] = DocstringAttribute(name, annotation=annotation, description=text)
    return list(lines.values())


def _has_heading(owner: Class, member: Any) -> bool:
    is_property = "property" in member.labels and member.docstring is not None
    is_shown = _is_shown(owner.path) and "errors" not in owner.module.name
    return is_property and is_shown and not _is_attrs(owner)


def _hidden_methods(owner: Class) -> dict[str, Function]:
    """Return the public methods that a class inherits from base classes that are not shown."""
    hidden = [each for each in _bases(owner) if not _is_shown(each.path)]
    return {
        name: member
        for each in reversed(hidden)
        for name, member in each.members.items()
        if isinstance(member, Function) and name[0] != "_" and name not in owner.members
    }


def _inherit_docstrings(owner: Class) -> None:
    for name, method in owner.members.items():
        if isinstance(method, Function) and method.docstring is None:
            overridden = (base.members[name] for base in _bases(owner) if name in base.members)
            method.docstring = next((each.docstring for each in overridden if each.docstring), None)


def _is_set_in_init(owner: Class, attribute: Attribute) -> bool:
    init = owner.members.get("__init__")
    if init is None or init.lineno is None or init.endlineno is None:
        return False
    return init.lineno <= (attribute.lineno or 0) <= init.endlineno


def _bases(owner: Class) -> Iterable[Class]:
    try:
        return owner.mro()
    except ValueError:
        return ()


def _described(owner: Class) -> Iterator[tuple[str, str]]:
    """Yield the names and descriptions of the section "Attributes", and of documented members."""
    if owner.docstring is not None:
        for section in owner.docstring.parse("google", warnings=False):
            if isinstance(section, DocstringSectionAttributes):
                for item in section.value:
                    yield item.name, item.description
    for name, member in owner.members.items():
        if isinstance(member, Attribute) and member.docstring is not None:
            yield name, member.docstring.value


def _is_shown(base: str) -> bool:
    name = base.partition("[")[0].rpartition(".")[2]
    return name not in _HIDDEN and name[0] != "_" and not name.endswith("Contract")


def _is_attrs(owner: Class) -> bool:
    decorators = (str(each.value).partition("(")[0] for each in owner.decorators)
    return any(each in {"frozen", "define"} for each in decorators)


def _constructor(owner: Class) -> Function:
    parameters = dict[str, Parameter]()
    for each in reversed([owner, *_bases(owner)]):
        for name, member in each.members.items() if _is_attrs(each) else ():
            if not isinstance(member, Attribute) or not _is_field(member):
                continue
            only = "kw_only=True" in str(member.value)
            parameters[name] = Parameter(
                name.lstrip("_"),
                annotation=member.annotation,
                kind=ParameterKind.keyword_only if only else ParameterKind.positional_or_keyword,
                default=_default(member),
            )
    itself = Parameter("self", kind=ParameterKind.positional_or_keyword)
    return Function("__init__", parameters=Parameters(itself, *parameters.values()), parent=owner)


def _is_field(member: Attribute) -> bool:
    is_field = member.annotation is not None and "instance-attribute" in member.labels
    is_property = "property" in member.labels
    hidden = member.name == "extra" or "init=False" in str(member.value)
    return is_field and not is_property and not hidden


def _default(member: Attribute) -> Any:
    value = member.value
    text = str(value or "")
    if not text.startswith("field("):
        return value
    if factory := _FACTORY.search(text):
        return "{}" if factory[1] == "dict" else f"{factory[1]}()"
    default = _DEFAULT.search(text)
    return default[1] if default else None
