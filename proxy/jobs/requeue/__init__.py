"""Requeue: a job on which no worker works gets its Celery message again.

`requeuer.Requeuer` is the task: it reads the broker (`broker`), asks the workers (`pidbox`), judges
each unfinished job (`evidence`) and pushes or restores a message (`starter`, `scripts`). `messages`
knows kombu's message format. Uses the mirror's `RedisConnection` and the job store.
"""
