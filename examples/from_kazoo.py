"""What kazoo's Election recipe did, with a deadline and a token.

``python from_kazoo.py STORE ID``

Before::

    zk = KazooClient(hosts="127.0.0.1:2181")
    zk.start()
    zk.Election("/jobs/leader", name).run(lead, "some argument")
"""

import functools
import sys

from leadership import Candidate, Term, new_store


def lead(argument: str, term: Term) -> None:
    """Called while we lead, as kazoo calls it; the term says until when."""
    for number in range(3):
        term.check()  # raises once the term is over, where kazoo's recipe says nothing
        print(term.id, term.token, argument, number, flush=True)


def main() -> None:
    url, name = sys.argv[1:]
    with new_store(url) as store:  # zookeeper://127.0.0.1:2181
        candidate = Candidate(store, "jobs/leader", name, ttl=10)
        with candidate.campaign() as term:  # as Election.run: once, and the key is released
            functools.partial(lead, "some argument")(term)


if __name__ == "__main__":
    main()
