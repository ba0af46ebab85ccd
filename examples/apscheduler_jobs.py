"""APScheduler on every node, of which only the leader's runs jobs.

``python apscheduler_jobs.py STORE ID``
"""

import signal
import sys
import threading

from apscheduler.schedulers.background import BackgroundScheduler

from leadership import Candidate, Term, new_store


def main() -> None:
    url, name = sys.argv[1:]
    with new_store(url) as store:
        candidate = Candidate(store, "jobs/scheduler", name, ttl=4, grace=1)

        def lead(term: Term) -> None:
            # A scheduler of this term's own: no job of it is left to begin under a later one.
            scheduler = BackgroundScheduler()

            @scheduler.scheduled_job("interval", seconds=0.2)
            def tick() -> None:
                term.check()
                # What a job writes to should refuse a token that is older than it has seen.
                print(name, term.token, flush=True)

            scheduler.start()
            try:
                term.wait_lost()
            finally:
                # The key is released only after the jobs that run have ended.
                scheduler.shutdown(wait=True)

        def stop(number: int, frame: object) -> None:
            threading.Thread(target=candidate.stop).start()

        signal.signal(signal.SIGTERM, stop)
        candidate.run(lead)


if __name__ == "__main__":
    main()
