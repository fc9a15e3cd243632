"""Completion for bash, zsh and fish: the scripts, and the names that they request.

A script contains every command, option and choice. It starts policyd, which takes noticeable time, only for names of
the ruleset: with _POLICYD_COMPLETE=names_SECTION, and the words of the command line as arguments. The scripts are
printed through click: `_POLICYD_COMPLETE=bash_source policyd`, or zsh_source, or fish_source.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import BashComplete, FishComplete, ZshComplete, add_completion_class, shell_complete

from policyd.cli import COMPLETE, policyd
from policyd.cli.options import DEFAULT_CONFIG, RulesetName, Suggested
from policyd.config.names import ruleset_names

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Metavariables of the options and arguments that take a file or a folder.
_FILES = {"FILE", "[FILE]...", "LOG...", "[LOG]", "[LOG]...", "OLD"}
_FOLDERS = {"FOLDER"}


def complete() -> int:
    """Carries out the request in the environment variable; returns the exit status."""
    instruction = os.environ[COMPLETE]
    kind, _, section = instruction.partition("_")
    if kind == "names":
        end = "=" if section.endswith("=") else ""
        names = ruleset_names(section.removesuffix("="), *_files_of(sys.argv[1:]))
        click.echo("".join(f"{name}{end}\n" for name in names), nl=False)
        return 0
    return shell_complete(policyd, {}, "policyd", COMPLETE, instruction)


def _files_of(words: list[str]) -> tuple[str | None, str | None]:
    """Returns the settings and the ruleset that an unfinished command line names; if it names neither, the installed
    settings.
    """
    found: dict[str, str] = {}
    words = [word for word in words if word != "="]  # bash splits --rules=FILE into three words
    for word, following in zip(words, [*words[1:], ""], strict=True):
        for option, name in (("-c", "config"), ("--config", "config"), ("--rules", "rules")):
            if word == option:
                found[name] = following
            elif option.startswith("--") and word.startswith(f"{option}="):
                found[name] = word.removeprefix(f"{option}=")
    paths = {name: str(Path(path).expanduser()) for name, path in found.items() if path}
    return paths.get("config", None if "rules" in paths else DEFAULT_CONFIG), paths.get("rules")


@dataclass(frozen=True, slots=True)
class _Value:
    """The completions of a value: words, names in a section of the ruleset, files or folders.

    If a word or the section ends in `=`, a value follows without a blank.
    """

    words: tuple[str, ...] = ()
    section: str = ""
    is_file: bool = False
    is_folder: bool = False

    @classmethod
    def of(cls, parameter: click.Parameter) -> _Value:
        """Returns the completions for the value of an option, or for an argument."""
        if isinstance(parameter.type, click.Choice):
            return cls(words=tuple(parameter.type.choices))
        if isinstance(parameter.type, Suggested):
            return cls(words=parameter.type.words)
        if isinstance(parameter.type, RulesetName):
            return cls(section=parameter.type.section)
        return cls(is_file=parameter.metavar in _FILES, is_folder=parameter.metavar in _FOLDERS)


@dataclass(frozen=True, slots=True)
class _Option:
    names: tuple[str, ...]
    help: str
    multiple: bool
    value: _Value | None  # None: the option takes no value


@dataclass(frozen=True, slots=True)
class _Command:
    """A command for completion. `arguments` are in the order of the command line; the last may be repeated."""

    name: str
    help: str
    options: tuple[_Option, ...]
    arguments: tuple[_Value, ...]


def _commands() -> Iterator[_Command]:
    group = policyd.make_context("policyd", [], resilient_parsing=True)
    for name in policyd.list_commands(group):
        command = policyd.get_command(group, name)
        assert command is not None
        context = click.Context(command, parent=group, info_name=name)
        parameters = command.get_params(context)
        yield _Command(
            name,
            _first_sentence(command.help),
            tuple(_option(parameter) for parameter in parameters if isinstance(parameter, click.Option)),
            tuple(_Value.of(parameter) for parameter in parameters if isinstance(parameter, click.Argument)),
        )


def _option(option: click.Option) -> _Option:
    takes_value = not (option.is_flag or option.count)
    names = (*option.opts, *option.secondary_opts)
    return _Option(names, _first_sentence(option.help), option.multiple, _Value.of(option) if takes_value else None)


def _first_sentence(text: str | None) -> str:
    """The first sentence of a help text, in one line and without its full stop."""
    return re.split(r"\.(?:\s|$)", " ".join((text or "").split("\n\n", 1)[0].split()), maxsplit=1)[0]


# --- bash -------------------------------------------------------------------------------------------------------------

_BASH = r"""# Completion of policyd for bash 4.4 and newer.

_policyd() {
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]} words= section= word
    local -a found=()
    COMPREPLY=()
    # bash splits --option=value into three words.
    if [[ $current == '=' ]]; then
        current=
    elif [[ $previous == '=' ]] && ((COMP_CWORD > 2)); then
        previous=${COMP_WORDS[COMP_CWORD-2]}
    fi
    if ((COMP_CWORD == 1)); then
        words=%(commands)s
        [[ $current != -* ]] || words='--version --help'
    else
        case "${COMP_WORDS[1]} $previous" in
%(values)s
        *)
            case "${COMP_WORDS[1]} $current" in
%(options)s
            *)
                case "${COMP_WORDS[1]}" in
%(arguments)s
                esac
                ;;
            esac
            ;;
        esac
    fi
    if [[ $section ]]; then
        words=$(env _POLICYD_COMPLETE="names_$section" "${COMP_WORDS[0]}" "${COMP_WORDS[@]:1}" </dev/null 2>/dev/null)
    fi
    # Not `compgen -W`, which would expand the words.
    IFS=$' \t\n' read -rd '' -a found <<<"$words"
    for word in "${found[@]}"; do
        if [[ $word == "$current"* ]]; then
            COMPREPLY+=("$word")
            [[ $word != *= ]] || compopt -o nospace
        fi
    done
}

complete -o nosort -F _policyd policyd
"""


class _Bash(BashComplete):
    def source(self) -> str:
        commands = list(_commands())
        values, options, arguments = [], [], []
        for command in commands:
            for option in command.options:
                if option.value is not None:
                    patterns = "|".join(shlex.quote(f"{command.name} {name}") for name in option.names)
                    values.append(f"        {patterns}) {_bash_value(option.value)} ;;")
            names = " ".join(name for option in command.options for name in option.names if name.startswith("--"))
            options.append(f"            '{command.name} -'*) words='{names}' ;;")
            if command.arguments:
                arguments.append(f"                {command.name}) {_bash_arguments(command.arguments)} ;;")
        return _BASH % {
            "commands": shlex.quote(" ".join(command.name for command in commands)),
            "values": "\n".join(values),
            "options": "\n".join(options),
            "arguments": "\n".join(arguments),
        }


def _bash_value(value: _Value) -> str:
    if value.is_file:
        return "compopt -o default"
    if value.is_folder:
        return "compopt -o default -o dirnames"
    return f"section={value.section}" if value.section else f"words={shlex.quote(' '.join(value.words))}"


def _bash_arguments(arguments: Sequence[_Value]) -> str:
    """Returns bash code: completes the first argument until one of its words is on the line, then the second.

    A first argument without words is skipped.
    """
    first, *rest = arguments
    if not rest:
        return _bash_value(first)
    if not first.words:
        return _bash_value(rest[0])
    given = f'[[ " ${{COMP_WORDS[*]:2:COMP_CWORD-2}} " =~ " "({"|".join(first.words)})" " ]]'
    return f"if {given}; then {_bash_value(rest[0])}; else {_bash_value(first)}; fi"


# --- zsh --------------------------------------------------------------------------------------------------------------

_ZSH = r"""#compdef policyd
# Completion of policyd for zsh.

_policyd_names() {
    local -a names
    names=(${(f)"$(env _POLICYD_COMPLETE=names_$1 policyd "${(@)words[2,-1]}" </dev/null 2>/dev/null)"})
    (( $#names )) && compadd "${(@)argv[2,-1]}" -a names
}

_policyd() {
    local curcontext=$curcontext state line
    local -a commands
    local -A opt_args
    commands=(
%(commands)s
    )
    _arguments -C '(- *)--version[Show the version and exit]' '(- *)'{-h,--help}'[Show the help and exit]' \
        '1: :->command' '*:: :->arguments'
    case $state in
    command) _describe -t commands command commands ;;
    arguments)
        case $words[1] in
%(cases)s
        esac
        ;;
    esac
}

if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _policyd "$@"
else
    compdef _policyd policyd
fi
"""


class _Zsh(ZshComplete):
    def source(self) -> str:
        commands = list(_commands())
        names = "\n".join(f"        {shlex.quote(f'{command.name}:{command.help}')}" for command in commands)
        return _ZSH % {"commands": names, "cases": "\n".join(map(_zsh_case, commands))}


def _zsh_case(command: _Command) -> str:
    specifications = [_zsh_option(option, name) for option in command.options for name in option.names]
    last = len(command.arguments) - 1
    for number, value in enumerate(command.arguments):
        place = "*" if number == last else str(number + 1)
        specifications.append(f"{place}:argument:{_zsh_value(value)}")
    lines = " \\\n".join(f"                {shlex.quote(specification)}" for specification in specifications)
    return f"        {command.name})\n            _arguments \\\n{lines}\n            ;;"


def _zsh_option(option: _Option, name: str) -> str:
    others = "*" if option.multiple else f"({' '.join(option.names)})"
    about = re.sub(r"([\[\]:\\])", r"\\\1", option.help)
    if option.value is None:
        return f"{others}{name}[{about}]"
    joined = "=" if name.startswith("--") else "+"
    return f"{others}{name}{joined}[{about}]:value:{_zsh_value(option.value)}"


def _zsh_value(value: _Value) -> str:
    if value.is_file:
        return "_files"
    if value.is_folder:
        return "_files -/"
    if value.section:
        # The leading space keeps zsh from adding its own arguments.
        return f" _policyd_names {value.section}" + (" -S ''" if value.section.endswith("=") else "")
    if value.words and all(word.endswith("=") for word in value.words):
        return f"compadd -S '' -- {' '.join(value.words)}"
    return f"({' '.join(value.words)})" if value.words else " "


# --- fish -------------------------------------------------------------------------------------------------------------

_FISH = r"""# Completion of policyd for fish.

function __policyd_no_command
    test (count (commandline -opc)) -eq 1
end

# Whether the line has the command $argv[1], and none of the words after it.
function __policyd_is
    set -l words (commandline -opc)
    test (count $words) -ge 2; and test $words[2] = $argv[1]; or return 1
    for word in $argv[2..]
        contains -- $word $words[3..]; and return 1
    end
    return 0
end

# Whether the line has the command $argv[1], and one of the words after it.
function __policyd_after
    set -l words (commandline -opc)
    __policyd_is $argv[1]; and not __policyd_is $argv
end

function __policyd_names
    env _POLICYD_COMPLETE=names_$argv[1] policyd (commandline -opc)[2..] </dev/null 2>/dev/null
end

complete -c policyd -f
complete -c policyd -n __policyd_no_command -l version -d 'Show the version and exit'
complete -c policyd -n __policyd_no_command -s h -l help -d 'Show the help and exit'
%(lines)s
"""


class _Fish(FishComplete):
    def source(self) -> str:
        commands = list(_commands())
        lines = [
            f"complete -c policyd -n __policyd_no_command -a {command.name} -d {_fish(command.help)}"
            for command in commands
        ]
        for command in commands:
            is_it = f"complete -c policyd -n '__policyd_is {command.name}'"
            for option in command.options:
                names = " ".join(
                    f"-l {name.removeprefix('--')}" if name.startswith("--") else f"-s {name.removeprefix('-')}"
                    for name in option.names
                )
                value = "" if option.value is None else f" {_fish_value(option.value, '-r')}"
                lines.append(f"{is_it} {names}{value} -d {_fish(option.help)}")
            lines += _fish_arguments(command)
        return _FISH % {"lines": "\n".join(lines)}


def _fish_arguments(command: _Command) -> Iterator[str]:
    if not command.arguments:
        return
    first, *rest = command.arguments
    words = " ".join((command.name, *first.words)) if rest else command.name
    if not rest or first.words:
        yield f"complete -c policyd -n '__policyd_is {words}' {_fish_value(first)}"
    if rest:
        condition = "__policyd_after" if first.words else "__policyd_is"
        yield f"complete -c policyd -n '{condition} {words}' {_fish_value(rest[0])}"


def _fish_value(value: _Value, required: str = "") -> str:
    """Returns arguments of fish's `complete` for a value; `required` is `-r` for the value of an option."""
    if value.is_file:
        return f"{required} -F".lstrip()
    if value.is_folder:
        return f"{required} -f -a '(__fish_complete_directories (commandline -ct))'".lstrip()
    words = f"(__policyd_names {value.section})" if value.section else " ".join(value.words)
    return f"{required} -f -a {_fish(words)}".lstrip()


def _fish(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


for _shell in (_Bash, _Zsh, _Fish):
    add_completion_class(_shell)
