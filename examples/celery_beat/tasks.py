"""A Celery application with a schedule. Workers run on all nodes, beat on the leading one.

    leadership run --store etcd://127.0.0.1:2379 --key celery/beat --id "$HOSTNAME" -- \\
        celery --app tasks beat --loglevel INFO --schedule /var/lib/celery/beat
"""

import os

from celery import Celery

app = Celery("tasks", broker=os.environ.get("BROKER_URL", "redis://127.0.0.1:6379"))
app.conf.beat_schedule = {"every-second": {"task": "tasks.tick", "schedule": 1.0}}


@app.task
def tick() -> None:
    """What is to be done once a second, by any worker."""
