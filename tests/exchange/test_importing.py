from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policyd.exchange.importing import (
    IMPORT_FORMATS,
    ImportFailedError,
    ImportForm,
    ImportOptions,
    as_json_object,
    import_files,
)
from policyd.logs.files import MAX_LINE_BYTES
from tests.examples import examples
from tests.exchange.answers import import_text, ruleset

if TYPE_CHECKING:
    from pathlib import Path

# A sample file for each format. `lines` mixes the lines of all samples.
SAMPLES = {
    "plain": "192.0.2.0/24\n198.51.100.1 - 198.51.100.9\nb.example\n*.c.example\na@b.example\n# c\n",
    "postfix-access": "b.example REJECT\n.c.example OK\n192.0.2 550 5.7.1 no\n2001:db8 DEFER x\na@b.example HOLD\n",
    "postfix-cidr": "192.0.2.0/24 REJECT\nif !10.0.0.0/8\n!198.51.100.0/24 550 no\nendif\n2001:db8::/32 OK\n",
    "postfix-pcre": "/^a(b)/i REJECT $1\nif !/x/\n!/y$/ OK\nendif\n/(?!z)/ REJECT\n~[[:alpha:]]~ 450 4.7.1 later\n",
    "postfix-regexp": "/^a(b)/i REJECT $1\nif !/x/\n!/y$/ OK\nendif\n/\\<z\\>/ REJECT\n/[]a\\]/ 450 4.7.1 later\n",
    "sendmail-access": 'Connect:192.0.2 REJECT\nFrom:a@b.example ERROR:5.7.1:"550 no"\nTo:x@ OK\ncyber.example RELAY\n',
    "postconf": "smtpd_client_restrictions = permit_dnswl_client a.example, reject_rbl_client b.example=127.0.0.2\n",
    "postfwd": "&&A { sender=x; };\nid=R; &&A; client_address=192.0.2.0/24; action=REJECT $$sender\naction=dunno\n",
    "postgrey": "b.example\n/^mx\\d+\\.c\\.example$/\n192.0.2\n2001:db8::/32 # x\nabuse@\n",
    "whois": "inetnum: 192.0.2.0 - 192.0.2.255\nCIDR: 198.51.100.0/24\nroute: 192.0.0.0/16\n NET/1.2.3.0/24\n",
    "spamhaus-drop": '; head\n1.10.16.0/20 ; SBL1\n{"cidr":"2001:db8::/32"}\n{"type":"metadata"}\n',
    "iptables-save": "-A INPUT -s 192.0.2.1 -j DROP\n-A INPUT -i x -j x\n-A x ! -s 10.0.0.0/8 -p tcp -j RETURN\n",
    "nft": "table ip t {\nset s { type ipv4_addr; elements = { 192.0.2.1 }\n}\nchain c {\nip saddr @s drop\n}\n}\n",
    "ipset": 'create s hash:net\nadd s 192.0.2.0/24 timeout 5 comment "a b"\nadd s 192.0.2.1 nomatch\nswap s t\n',
    "rspamd-map": '192.0.2.0/24 5\n"b.example"\n/^x/i\n*.c.example # d\na@b.example\n',
}


def failure(format_name: str, path: Path | str) -> ImportFailedError:
    with pytest.raises(ImportFailedError) as caught:
        import_files(format_name, [str(path)], ImportOptions())
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()
    return caught.value


@pytest.mark.parametrize("name", IMPORT_FORMATS)
def test_a_binary_empty_or_missing_file_gives_a_one_line_error(name: str, tmp_path: Path) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(bytes(range(256)) * 40)
    error = failure(name, binary)
    assert (error.exit_status, "is a binary file" in str(error)) == (1, True)
    empty = tmp_path / "empty"
    empty.write_text("")
    error = failure(name, empty)
    assert (error.exit_status, str(error)) == (1, f"{empty}: is empty")
    error = failure(name, tmp_path / "missing")
    assert (error.exit_status, "no such file" in str(error)) == (2, True)
    error = failure(name, tmp_path)
    assert error.exit_status == 2


@pytest.mark.parametrize("name", IMPORT_FORMATS)
def test_a_file_in_another_format_gives_a_one_line_error(name: str, tmp_path: Path) -> None:
    prose = tmp_path / "prose"
    prose.write_text("Dear colleagues,\n\nplease find enclosed: nothing!\nYours = sincerely; (a friend)\n")
    error = failure(name, prose)
    assert error.exit_status == 1
    assert str(error).startswith(str(prose))


def test_a_compressed_file_is_read_unless_it_is_truncated(tmp_path: Path) -> None:
    whole = gzip.compress(b"192.0.2.1 REJECT\n" * 5000)
    path = tmp_path / "table.gz"
    path.write_bytes(whole)
    assert import_files("postfix-cidr", [str(path)], ImportOptions()).rules[0].match == {"cidr": ("192.0.2.1",)}
    path.write_bytes(whole[:-20])
    error = failure("postfix-cidr", path)
    assert (error.exit_status, "cut off" in str(error)) == (2, True)


def test_a_line_that_is_too_long_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "long"
    path.write_text("192.0.2.1\n" + "10.0.0.1," * (MAX_LINE_BYTES // 8))
    error = failure("plain", path)
    assert (error.exit_status, str(error)) == (1, f"{path}:2: the line is longer than 256 KiB")


def test_a_file_with_too_many_lines_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("policyd.exchange.importing.MAX_LINES", 100)
    path = tmp_path / "many"
    path.write_text("192.0.2.1\n" * 101)
    assert "has more than 100 lines" in str(failure("plain", path))


def test_control_characters_in_a_file_name_are_escaped_in_messages_and_rules(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[31m\nb"
    path.write_text("192.0.2.1 REJECT\nnonsense\n")
    result = import_files("postfix-cidr", [str(path)], ImportOptions())
    assert all(message.isprintable() for message in result.report.messages())
    assert len(ruleset(result.text).rules) == 1
    path.write_text("nonsense\n")
    failure("postfix-cidr", path)


def test_several_files_are_imported_in_order_with_unique_names(tmp_path: Path) -> None:
    paths: list[str] = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "clients.cidr"
        path.write_text(f"192.0.2.{len(paths)} REJECT\n")
        paths.append(str(path))
    result = import_files("postfix-cidr", paths, ImportOptions())
    assert [(rule.name, rule.match["cidr"]) for rule in result.rules] == [
        ("clients-1", ("192.0.2.0",)),
        ("clients-2", ("192.0.2.1",)),
    ]


def test_the_json_report_agrees_with_the_text_report() -> None:
    result = import_text("postfix-cidr", "192.0.2.1 OK\n192.0.2.2/24 REJECT\n192.0.2.3 REJECT 5.7.1 no\n")
    document = as_json_object(result)
    assert (document["shape"], document["taken"], document["text"]) == ("rules", 2, result.text)
    assert [rule["action"] for rule in document["rules"]] == ["DUNNO", "REJECT 5.7.1 no"]
    assert [(lost["line"], lost["text"]) for lost in document["lost"]] == [(2, "192.0.2.2/24 REJECT")]
    assert [(note["lines"], note["count"]) for note in document["notes"]] == [([1], 1)]


def test_every_format_has_a_sample_that_can_be_imported() -> None:
    assert set(SAMPLES) == set(IMPORT_FORMATS)
    for name, sample in SAMPLES.items():
        assert import_text(name, sample).report.taken, name


pieces = st.sampled_from(sorted({line for sample in SAMPLES.values() for line in sample.splitlines()}))
lines = (
    pieces
    | st.text(st.characters(exclude_characters="\n\x00", exclude_categories=["Cs"]), max_size=20)
    | st.builds(lambda line, start, end: line[start:end] + line[:start], pieces, st.integers(0, 20), st.integers(0, 40))
)


@pytest.mark.parametrize("name", IMPORT_FORMATS)
@settings(max_examples=examples(60), deadline=None)
@given(rows=st.lists(lines, max_size=8))
def test_any_file_gives_valid_rules_and_a_report_or_a_one_line_error(name: str, rows: list[str]) -> None:
    try:
        result = import_text(name, "\n".join(rows), ImportOptions(shape=ImportForm.RULES))
    except ImportFailedError as error:
        assert str(error).isprintable()
        return
    ruleset(result.text)
    assert all(message.isprintable() for message in result.report.messages())


@pytest.mark.parametrize(
    ("format_name", "content"),
    [
        ("spamhaus-drop", "192.0.2.0/24 ; SBL1\n198.51.100.0/24 ; SBL2\n"),
        ("plain", "192.0.2.0/24\n"),
        ("whois", "inetnum: 192.0.2.0 - 192.0.2.255\n"),
    ],
)
def test_the_name_of_a_temporary_file_does_not_change_a_list(tmp_path: Path, format_name: str, content: str) -> None:
    written = set()
    for name in ("drop.txt.new", "tmp.Xa91", "fetched"):
        (tmp_path / name).write_text(content)
        written.add(import_files(format_name, [str(tmp_path / name)], ImportOptions(shape=ImportForm.LIST)).text)
    assert len(written) == 1
