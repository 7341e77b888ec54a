"""Headers of regular files are read the short way just where `tarfile` reads the same."""

from __future__ import annotations

import io
import tarfile

from hypothesis import example, given
from hypothesis import strategies as st

from sigma_data.storage.tar_members import MemberKind, TarError, tar_members


class Bytes:
    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def take(self, size: int) -> bytes:
        return self._file.read(size)

    def skip_to(self, offset: int) -> bool:
        return self._file.seek(offset) <= len(self._file.getbuffer())


def members(data: bytes) -> list[tuple[str, int, MemberKind]] | str:
    try:
        return [(one.name, one.size, one.kind) for one in tar_members(Bytes(data))]
    except TarError as error:
        return error.code


def header(name: str, size: int, form: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(form, "utf-8", "surrogateescape")


@given(
    st.text("ab/é. ", min_size=1, max_size=99).filter(lambda name: name.strip("/. ")),
    st.integers(0, 3000),
    st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT]),
)
def test_a_member_is_what_tarfile_says(name: str, size: int, form: int) -> None:
    name = name.strip("/. ")
    if len(name.encode()) > 100:
        return
    found = members(header(name, size, form) + bytes(-(-size // 512) * 512))
    clean = "/".join(word for word in name.split("/") if word not in ("", "."))
    kind = MemberKind.UNSAFE if ".." in name.split("/") else MemberKind.FILE
    assert found == [(name if kind is MemberKind.UNSAFE else clean, size, kind)]


@given(st.integers(0, 511), st.integers(0, 255))
@example(156, ord("2"))  # a link
@example(345, ord("a"))  # a prefix of the name
def test_a_changed_header_is_never_taken_for_whole(place: int, value: int) -> None:
    head = bytearray(header("a/b.jpg", 5, tarfile.USTAR_FORMAT))
    if head[place] == value:
        return
    head[place] = value
    found = members(bytes(head) + bytes(512))
    try:
        tarfile.TarInfo.frombuf(bytes(head), "utf-8", "backslashreplace")
    except tarfile.HeaderError:
        assert found == "not_a_tar"
    else:  # the same sum in another spelling
        assert found == [("a/b.jpg", 5, MemberKind.FILE)]


def test_a_link_and_a_long_name_go_the_long_way() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        link = tarfile.TarInfo("a.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "b.jpg"
        tar.addfile(link)
        tar.addfile(tarfile.TarInfo(f"{'folder' * 20}/{'name' * 20}.jpg"))
    assert members(out.getvalue()) == [
        ("a.jpg", 0, MemberKind.LINK),
        (f"{'folder' * 20}/{'name' * 20}.jpg", 0, MemberKind.FILE),
    ]
