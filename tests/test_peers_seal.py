"""A seal is believed once, from a member, for this process; anything else has no effect."""

from __future__ import annotations

import pytest

from leadership.backends._peers_seal import Node, OtherIncarnation, Refused, Seals

A, B, C = Node("a:1", 11), Node("b:1", 22), Node("c:1", 33)
MEMBERS = frozenset({"a:1", "b:1", "c:1"})
SECRET = (b"the secret",)
PATH, BODY = "/leadership", b"content"


def opened(
    receiver: Seals, headers: dict[str, str], body: bytes = BODY, path: str = PATH
) -> tuple[Node, int]:
    sealed = receiver.open_request(headers, path, MEMBERS)
    sealed.check(body)
    return sealed.sender, sealed.number


@pytest.mark.parametrize("secrets", [(), SECRET], ids=["no secret", "a secret"])
def test_a_request_and_its_answer_are_believed(secrets: tuple[bytes, ...]) -> None:
    sender, receiver = Seals(A, secrets), Seals(B, secrets)
    headers, number = sender.request(B, PATH, BODY)
    assert opened(receiver, headers) == (A, number)
    answer = receiver.answer(headers, PATH, b"yes")
    assert sender.open_answer(answer, PATH, b"yes", B, number) == B


def test_each_altered_part_is_refused() -> None:
    sender, receiver = Seals(A, SECRET), Seals(B, SECRET)
    headers, _ = sender.request(B, PATH, BODY)
    for name, value in headers.items():
        altered = str(int(value) + 1) if value.isdigit() else value[:-1] + "x"
        with pytest.raises(Refused):
            opened(receiver, {**headers, name: altered})
        with pytest.raises(Refused):
            opened(receiver, {key: value for key, value in headers.items() if key != name})
    with pytest.raises(Refused):
        opened(receiver, headers, path="/other")
    # None of these has used up the number of the genuine one.
    assert opened(receiver, headers)[0] == A
    headers, _ = sender.request(B, PATH, BODY)
    with pytest.raises(Refused, match="not the one that was sealed"):
        opened(receiver, headers, body=BODY + b" ")


def test_what_an_old_process_sent_is_not_new_again_after_many_restarts() -> None:
    receiver = Seals(B, SECRET)
    recorded = []
    for run in range(1, 10):
        headers, _ = Seals(Node("a:1", run), SECRET).request(B, PATH, BODY)
        opened(receiver, headers)
        recorded.append(headers)
    # Nor can a recording push out what the present process sent.
    for headers in [*recorded, *recorded]:
        with pytest.raises(Refused, match=r"seen before|earlier process"):
            opened(receiver, headers)


def test_without_the_secret_nothing_is_believed() -> None:
    receiver = Seals(B, SECRET)
    for secrets in ((), (b"another",)):
        headers, _ = Seals(A, secrets).request(B, PATH, BODY)
        with pytest.raises(Refused, match="not sealed"):
            opened(receiver, headers)


def test_a_secret_can_be_changed_while_both_are_believed() -> None:
    old, new = b"old", b"new"
    for sends, believes in [((old,), (new, old)), ((new, old), (old, new)), ((new,), (new, old))]:
        headers, _ = Seals(A, sends).request(B, PATH, BODY)
        assert opened(Seals(B, believes), headers)[0] == A


def test_what_was_seen_before_is_refused() -> None:
    sender, receiver = Seals(A, SECRET), Seals(B, SECRET)
    sent = [sender.request(B, PATH, BODY)[0] for _ in range(50)]
    for headers in (*sent[1::2], *sent[::2]):
        opened(receiver, headers)
    for headers in sent:
        with pytest.raises(Refused, match="seen before"):
            opened(receiver, headers)


def test_what_is_too_old_to_remember_counts_as_seen() -> None:
    sender, receiver = Seals(A, SECRET), Seals(B, SECRET)
    late, _ = sender.request(B, PATH, BODY)
    for _ in range(5000):
        last, _ = sender.request(B, PATH, BODY)
    opened(receiver, last)
    with pytest.raises(Refused, match="seen before"):
        opened(receiver, late)


def test_a_number_without_end_costs_no_memory() -> None:
    sender, receiver = Seals(A, SECRET), Seals(B, SECRET)
    opened(receiver, sender.request(B, PATH, BODY)[0])
    sender._number = 10**19
    opened(receiver, sender.request(B, PATH, BODY)[0])
    sender._number = 10**30
    without_end, _ = sender.request(B, PATH, BODY)
    with pytest.raises(Refused, match="number"):
        opened(receiver, without_end)


def test_an_earlier_process_of_the_sender_is_not_new_again() -> None:
    receiver = Seals(B, SECRET)
    old, _ = Seals(A, SECRET).request(B, PATH, BODY)
    opened(receiver, old)
    opened(receiver, Seals(Node("a:1", 12), SECRET).request(B, PATH, BODY)[0])
    with pytest.raises(Refused, match="seen before"):
        opened(receiver, old)


def test_what_was_meant_for_an_earlier_process_is_told_apart() -> None:
    headers, number = Seals(A, SECRET).request(B, PATH, BODY)
    restarted = Seals(Node("b:1", 23), SECRET)
    with pytest.raises(OtherIncarnation):
        opened(restarted, headers)
    sender = Seals(A, SECRET)
    sender._number = number
    answer = restarted.answer(headers, PATH, b"")
    assert sender.open_answer(answer, PATH, b"", B, number) == Node("b:1", 23)


def test_strangers_and_other_receivers_are_refused() -> None:
    stranger, _ = Seals(Node("d:1", 44), SECRET).request(B, PATH, BODY)
    with pytest.raises(Refused, match="no member"):
        opened(Seals(B, SECRET), stranger)
    misdirected, _ = Seals(A, SECRET).request(C, PATH, BODY)
    with pytest.raises(Refused, match="another node"):
        opened(Seals(B, SECRET), misdirected)


def test_another_wire_version_is_refused() -> None:
    headers, _ = Seals(A).request(B, PATH, BODY)
    with pytest.raises(Refused, match="wire version"):
        opened(Seals(B), {**headers, "Leadership-Wire": "9"})


def test_an_answer_to_another_request_is_refused() -> None:
    sender, receiver, other = Seals(A, SECRET), Seals(B, SECRET), Seals(C, SECRET)
    first, one = sender.request(B, PATH, BODY)
    _, two = sender.request(B, PATH, BODY)
    answer = receiver.answer(first, PATH, b"yes")
    with pytest.raises(Refused, match="another request"):
        sender.open_answer(answer, PATH, b"yes", B, two)
    with pytest.raises(Refused, match="not the one that was sealed"):
        sender.open_answer(answer, PATH, b"no!", B, one)
    with pytest.raises(Refused, match="another node"):
        sender.open_answer(other.answer(first, PATH, b"yes"), PATH, b"yes", B, one)
