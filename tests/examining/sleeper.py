"""In place of a process that waits for others in vain."""

import time

print("waiting", flush=True)
time.sleep(60)
