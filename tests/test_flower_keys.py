"""The program beside a SuperLink: what it registers, what it takes away, and what it only says."""

from dataclasses import dataclass, field

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from uncurtail.adapters.flower_keys import look, public_key, read


@dataclass
class KnownNode:
    node_id: int
    public_key: bytes
    name: str = ""
    status: str = "registered"


@dataclass
class MemorySuperLink:
    """One that forgets nothing, and takes no key twice, as Flower's own."""

    known: list[KnownNode] = field(default_factory=list)
    refuses: str = ""
    answers: bool = True

    def nodes(self):
        if not self.answers:
            raise httpx.ConnectError("refused")
        return list(self.known)

    def register(self, key, name):
        if name == self.refuses or key in {node.public_key for node in self.known}:
            request = httpx.Request("POST", "https://127.0.0.1")
            answer = httpx.Response(400, text="in use", request=request)
            raise httpx.HTTPStatusError("no", request=request, response=answer)
        self.known.append(KnownNode(len(self.known) + 1, key, name))

    def unregister(self, node_id):
        self.known[node_id - 1].status = "unregistered"

    def live(self):
        return [node.name for node in self.known if node.status != "unregistered"]


def ssh(key):
    return key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )


@pytest.fixture
def folder(tmp_path):
    """Two keys, beside what a kubelet has in a mounted folder."""
    for name in ("pod-0", "pod-1.pub"):
        (tmp_path / name).write_bytes(ssh(ec.generate_private_key(ec.SECP384R1())) + b" me@here\n")
    (tmp_path / "..data").mkdir()
    return tmp_path


def test_keys_are_registered_once_under_the_names_of_their_files(folder):
    link = MemorySuperLink()
    assert look(folder, link) == []
    assert look(folder, link) == []
    assert link.live() == ["pod-0", "pod-1"]


def test_a_superlink_that_forgot_is_told_again(folder):
    link = MemorySuperLink()
    look(folder, link)
    link.known.clear()
    look(folder, link)
    assert link.live() == ["pod-0", "pod-1"]


def test_a_key_that_was_taken_away_is_unregistered_whoever_registered_it(folder):
    link = MemorySuperLink([KnownNode(1, b"by hand")])
    look(folder, link)
    (folder / "pod-0").unlink()
    assert look(folder, link) == []
    assert link.live() == ["pod-1"]


def test_a_key_that_comes_back_is_said_to_be_of_no_use(folder):
    link, text = MemorySuperLink(), (folder / "pod-0").read_bytes()
    look(folder, link)
    (folder / "pod-0").unlink()
    look(folder, link)
    (folder / "pod-0").write_bytes(text)
    (problem,) = look(folder, link)
    assert problem.startswith("pod-0: this key was unregistered")
    assert link.live() == ["pod-1"]


def test_a_new_key_takes_the_place_of_the_old_one(folder):
    link = MemorySuperLink()
    look(folder, link)
    (folder / "pod-0").write_bytes(ssh(ec.generate_private_key(ec.SECP256R1())))
    assert look(folder, link) == []
    assert sorted(link.live()) == ["pod-0", "pod-1"]
    assert [n.status for n in link.known if n.name == "pod-0"] == ["unregistered", "registered"]


@pytest.mark.parametrize("text", [b"", b"nonsense", b"ssh-rsa AAAA", b"\xff\x00"])
def test_a_file_that_is_no_key_is_said_and_takes_nothing_from_anybody(folder, text):
    link = MemorySuperLink()
    look(folder, link)
    (folder / "pod-0").write_bytes(text)
    (folder / "pod-2").write_bytes(ssh(ec.generate_private_key(ec.SECP384R1())))
    (problem,) = look(folder, link)
    assert problem.startswith("pod-0: not an ECDSA public key")
    assert link.live() == ["pod-0", "pod-1", "pod-2"]


def test_a_private_key_and_one_of_another_kind_are_refused_by_name():
    pair = ed25519.Ed25519PrivateKey.generate()
    private = pair.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    with pytest.raises(ValueError, match="private key"):
        public_key(private)
    with pytest.raises(ValueError, match="not an ECDSA"):
        public_key(ssh(pair))


def test_one_key_under_two_names_is_said(folder):
    (folder / "pod-2").write_bytes((folder / "pod-0").read_bytes())
    link = MemorySuperLink()
    assert look(folder, link) == ["pod-2: the same key as pod-0: each needs its own"]
    assert link.live() == ["pod-0", "pod-1"]


def test_a_name_that_superlink_has_otherwise_is_said(folder):
    (key,) = (key for key, name in read(folder).names.items() if name == "pod-0")
    link = MemorySuperLink([KnownNode(1, key)])
    assert look(folder, link) == ["pod-0: already registered, as nobody in particular"]
    assert link.live() == ["", "pod-1"]


def test_a_folder_without_any_key_unregisters_nobody(folder):
    link = MemorySuperLink()
    look(folder, link)
    for path in folder.glob("pod-*"):
        path.unlink()
    (problem,) = look(folder, link)
    assert "no key is there" in problem
    assert link.live() == ["pod-0", "pod-1"]


def test_one_that_superlink_refuses_stops_no_other(folder):
    link = MemorySuperLink(refuses="pod-0")
    assert look(folder, link) == ["pod-0: not registered: HTTP 400 in use"]
    assert link.live() == ["pod-1"]


def test_a_superlink_that_does_not_answer_is_the_callers_matter(folder):
    with pytest.raises(httpx.RequestError):
        look(folder, MemorySuperLink(answers=False))
