"""A message follows its job: a job that nobody works on gets its Celery message again.

`requeuer.Requeuer` is the task: it looks at the broker (`broker`), asks the workers (`pidbox`),
judges each unfinished job (`evidence`) and pushes or restores a message (`scripts`). The format of
kombu's messages is in `messages`. Knows Redis through `redis_side.Link` and the job store.
"""
