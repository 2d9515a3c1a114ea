"""The pairing link and its QR code."""

from __future__ import annotations

import re
import stat
import struct
import zlib
from pathlib import Path

import pytest
import zxingcpp
from hypothesis import given
from hypothesis import strategies as st

from sdnet_core import NetworkIdentity, peer_id_from_public_key
from sdnet_core.errors import InvalidRequestError
from sdnet_pairing import PairingCode, PairingUri, UriError
from sdnet_pairing.qr import draw_qr, write_qr
from sdnet_pairing.uri import choose_addresses, is_uri

PEER = NetworkIdentity(bytes(range(32))).peer_id
CODE = PairingCode(bytes(range(16)))
URI = PairingUri(
    CODE,
    PEER,
    ("/ip4/192.0.2.1/tcp/4001", "/ip6/2001:db8::1/tcp/4001", "/dns4/host.example/tcp/443/wss"),
    (f"/ip4/198.51.100.7/tcp/4001/p2p/{PEER}",),
)
TEXT = (
    f"sdnet:pair?v=1&code=AAECAwQFBgcICQoLDA0ODw&peer={PEER}&at=/ip4/192.0.2.1/tcp/4001"
    "&at=/ip6/2001:db8::1/tcp/4001&at=/dns4/host.example/tcp/443/wss"
    f"&via=/ip4/198.51.100.7/tcp/4001/p2p/{PEER}&sum=j65taw"
)

_addresses = st.lists(st.from_regex(r"/[a-z0-9./:~-]{1,60}", fullmatch=True), max_size=8).map(tuple)
_peers = st.binary(min_size=32, max_size=32).map(peer_id_from_public_key)
_codes = st.binary(min_size=16, max_size=16).map(PairingCode)


def test_the_form_is_fixed() -> None:
    assert str(URI) == TEXT
    assert PairingUri.parse(TEXT) == URI


@given(_codes, _peers, _addresses)
def test_what_was_written_is_read(code: PairingCode, peer: str, addresses: tuple[str, ...]) -> None:
    uri = PairingUri(code, peer, addresses)
    assert PairingUri.parse(str(uri)) == uri


@given(_codes, st.randoms(use_true_random=False))
def test_broken_lines_and_white_space_do_not_matter(code: PairingCode, chance) -> None:  # type: ignore[no-untyped-def]
    text = str(PairingUri(code, PEER, ("/ip4/192.0.2.1/tcp/1",)))
    places = sorted(chance.sample(range(len(text)), 3), reverse=True)
    for place in places:
        text = text[:place] + chance.choice([" ", "\n", "\r\n  "]) + text[place:]
    assert PairingUri.parse(f"\t{text}\n").code == code


@given(st.integers(0, len(TEXT) - 1), st.characters(min_codepoint=33, max_codepoint=126))
def test_one_changed_character_is_noticed(place: int, character: str) -> None:
    changed = TEXT[:place] + character + TEXT[place + 1 :]
    if changed == TEXT or (changed.lower()[:6] == TEXT[:6] == changed[:6].lower() and changed[6:] == TEXT[6:]):
        return
    with pytest.raises(UriError):
        PairingUri.parse(changed)


@pytest.mark.parametrize("length", range(0, len(TEXT), 7))
def test_a_part_is_no_link(length: int) -> None:
    with pytest.raises(UriError):
        PairingUri.parse(TEXT[:length])


def resum(body: str) -> str:
    """A link with a right sum over whatever it says."""
    from sdnet_pairing.uri import _sum

    return f"{body}&sum={_sum(body)}"


HEAD = f"sdnet:pair?v=1&code=AAECAwQFBgcICQoLDA0ODw&peer={PEER}"


@pytest.mark.parametrize(
    "body",
    [
        HEAD + "&extra=1",
        HEAD + f"&peer={PEER}",
        HEAD + "&code=AAECAwQFBgcICQoLDA0ODw",
        HEAD + "&at=192.0.2.1",
        HEAD + "&at=",
        HEAD + "&at=/ip4/1.2.3.4/tcp/1%2f",
        HEAD + "&at=/" + "x" * 256,
        HEAD + "&at=/ip4/192.0.2.1/tcp/1" * 9,
        HEAD + "&via=/ip4/192.0.2.1/tcp/1",
        HEAD + f"&via=/ip4/192.0.2.1/tcp/1/p2p/{PEER}" * 3,
        HEAD + f"&via=/ip4/192.0.2.1/tcp/1/p2p/{PEER}&at=/ip4/192.0.2.1/tcp/1",
        HEAD.replace("ODw", "ODx"),
        HEAD.replace("ODw&", "&"),
        HEAD.replace(PEER, "12D3KooW"),
        HEAD.replace(PEER, "Qm" + "a" * 44),
        HEAD + "&",
        HEAD.replace("v=1&", "v=01&"),
        HEAD.replace("pair", "PAIR"),
        "sdnet:pair?v=1&",
    ],
)
def test_what_is_not_exactly_a_link_is_refused_whatever_its_sum(body: str) -> None:
    with pytest.raises(UriError):
        PairingUri.parse(resum(body))


def test_another_version_is_named() -> None:
    with pytest.raises(UriError, match="another version"):
        PairingUri.parse(resum(HEAD.replace("v=1", "v=2")))


@given(st.text(max_size=2000))
def test_any_text_is_a_link_or_an_error_that_can_be_shown(text: str) -> None:
    for given_text in (text, "sdnet:pair?v=1&" + text):
        said = ""
        try:
            PairingUri.parse(given_text)
        except UriError as error:
            said = error.detail
        assert said.isprintable()


def test_nothing_shows_the_code_by_accident() -> None:
    assert "AAEC" not in repr(URI)
    assert is_uri(f"\n{TEXT}")
    assert is_uri("SDNET:pair?")
    assert not is_uri("legal winner")


def test_the_addresses_of_a_link_are_those_that_others_can_dial() -> None:
    chosen = choose_addresses(
        [
            "/ip4/127.0.0.1/tcp/4001",
            "/ip6/::1/tcp/4001",
            "/ip6/fd00::1/tcp/4001",
            f"/ip4/198.51.100.7/tcp/1/p2p/{PEER}/p2p-circuit",
            "/ip4/8.8.8.8/tcp/4001",
            "/ip4/192.168.1.2/tcp/4001",
            "/ip4/10.0.0.1/tcp/4001",
        ]
    )
    assert chosen == (
        "/ip4/192.168.1.2/tcp/4001",
        "/ip4/10.0.0.1/tcp/4001",
        "/ip4/8.8.8.8/tcp/4001",
        f"/ip4/198.51.100.7/tcp/1/p2p/{PEER}/p2p-circuit",
    )
    assert choose_addresses(["/ip4/127.0.0.1/tcp/4001"]) == ("/ip4/127.0.0.1/tcp/4001",)


# The QR code, read by another implementation


def read(rows: list[bytes]) -> str:
    """Read the QR code in a grey picture."""
    picture = memoryview(b"".join(rows)).cast("B", (len(rows), len(rows[0])))
    (found,) = zxingcpp.read_barcodes(picture)
    text: str = found.text
    return text


def rows_of_terminal(drawn: str) -> list[bytes]:
    """The modules of a drawing with half blocks on a dark background, each as 4 x 4 pixels."""
    halves = {"█": (255, 255), "▀": (255, 0), "▄": (0, 255), " ": (0, 0)}
    width = max(len(line) for line in drawn.splitlines())
    rows = []
    for line in drawn.splitlines():
        cells = [halves[character] for character in line.ljust(width)]
        for half in (0, 1):
            rows += [b"".join(bytes([cell[half]]) * 4 for cell in cells)] * 4
    return [b"\xff" * len(rows[0])] * 8 + rows + [b"\xff" * len(rows[0])] * 8


def rows_of_png(data: bytes) -> list[bytes]:
    """The pixels of a PNG with one bit a pixel, as segno writes it."""
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    chunks: dict[bytes, bytes] = {}
    place = 8
    while place < len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        chunks[kind] = chunks.get(kind, b"") + data[place + 8 : place + 8 + length]
        place += 12 + length
    width, height, depth, colour = struct.unpack_from(">IIBB", chunks[b"IHDR"])
    assert (depth, colour) == (1, 0)
    raw, stride = zlib.decompress(chunks[b"IDAT"]), (width + 7) // 8 + 1
    rows, above = [], bytes(stride - 1)
    for start in range(0, height * stride, stride):
        line = raw[start + 1 : start + stride]
        assert raw[start] in (0, 2)  # not filtered, or the difference to the line above
        above = line if raw[start] == 0 else bytes((a + b) % 256 for a, b in zip(line, above, strict=True))
        rows.append(bytes(255 * (above[x // 8] >> 7 - x % 8 & 1) for x in range(width)))
    return rows


def test_the_code_on_a_terminal_can_be_read() -> None:
    drawn = draw_qr(TEXT)
    assert read(rows_of_terminal(drawn)) == TEXT
    coloured = draw_qr(TEXT, colours=True)
    assert re.sub("\x1b\\[[0-9;]*m", "", coloured) == drawn


def test_the_code_on_a_terminal_without_blocks_can_be_read() -> None:
    drawn = draw_qr(TEXT, encoding="ascii")
    assert drawn.isascii()
    lines = drawn.splitlines()
    width = max(map(len, lines)) + 4
    rows = []
    for line in lines:
        modules = line.ljust(width)[::2]
        rows += [b"".join(bytes([0 if module == "#" else 255]) * 4 for module in modules)] * 4
    assert read(rows) == TEXT


def test_the_code_in_a_png_can_be_read_by_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "code.png"
    write_qr(TEXT, path)
    assert read(rows_of_png(path.read_bytes())) == TEXT
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_code_in_an_svg_has_the_same_modules(tmp_path: Path) -> None:
    path = tmp_path / "code.svg"
    write_qr(TEXT, path)
    svg = path.read_text(encoding="utf-8")
    (path_data,) = re.findall(r' d="([^"]+)"', svg)
    size = int(re.search(r'width="(\d+)"', svg)[1]) // 8  # type: ignore[index]
    grid = [[255] * size for _ in range(size)]
    x, y = 0.0, 0.0
    for kind, arguments in re.findall(r"([Mmh])([-0-9. ]+)", path_data):
        numbers = [float(n) for n in re.findall(r"-?[0-9]*\.?[0-9]+", arguments)]
        match kind:
            case "M":
                x, y = numbers
            case "m":
                x, y = x + numbers[0], y + numbers[1]
            case "h":
                for column in range(int(x), int(x + numbers[0])):
                    grid[int(y)][column] = 0
                x += numbers[0]
    assert read([b"".join(bytes([cell]) * 4 for cell in row) for row in grid for _ in range(4)]) == TEXT


def test_nothing_is_overwritten_and_other_files_are_not_written(tmp_path: Path) -> None:
    there = tmp_path / "code.png"
    there.write_bytes(b"mine")
    with pytest.raises(InvalidRequestError, match="is there already"):
        write_qr(TEXT, there)
    assert there.read_bytes() == b"mine"
    with pytest.raises(InvalidRequestError, match=r"\.png or \.svg"):
        write_qr(TEXT, tmp_path / "code.jpg")
    with pytest.raises(InvalidRequestError, match="cannot be written"):
        write_qr(TEXT, tmp_path / "no folder" / "code.png")
    assert list(tmp_path.iterdir()) == [there]


def test_the_example_in_the_protocol_description_is_right() -> None:
    page = Path(__file__).parents[3] / "docs" / "protocol" / "pairing.md"
    if not page.exists():
        pytest.skip("the protocol descriptions are in the repository only")
    (example,) = re.findall(
        r"^    (sdnet:pair\?v=1&code=[A-Z]\S+&sum=\S{6})$", page.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert PairingUri.parse(example) == PairingUri(CODE, PEER, URI.addresses[:2])
