"""A judge behind an OpenAI-style endpoint: POST <url>/chat/completions, with patience.

The standard library does it: one JSON request and one JSON reply per call need no client, and a
redirect (which must not carry the key elsewhere) is a line to refuse.
"""

from __future__ import annotations

import dataclasses
import email.utils
import http.client
import ipaddress
import json
import os
import random
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence

import mlit_jax
from mlit_jax.errors import UserError
from mlit_jax.redaction import redact

TRANSIENT = (408, 409, 425, 429, 500, 502, 503, 504, 529)
REFUSED_TEXT = (400, 413, 422)  # of this conversation: too long, or filtered
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 1.0, 60.0
LONGEST_ASKED_WAIT_SECONDS = 600.0  # an endpoint that asks for more is tried again by hand
MAX_REPLY_BYTES = 10_000_000
NUM_SHOWN = 300  # characters of what a server said, in a message
SAY_SECONDS = 1.0  # between two lines about failures that are tried again


class Unavailable(UserError):
  """The endpoint does not answer, or does not want to; what was judged is kept."""


class Refused(UserError):
  """The endpoint will not take this conversation, however often it is asked."""


class Interrupted(Exception):
  """The work was called off while this call waited."""


@dataclasses.dataclass(frozen=True)
class Reply:
  """The text of an answer, and its tokens as the endpoint counts them (None: it does not say)."""

  text: str
  tokens_in: int | None = None
  tokens_out: int | None = None


@dataclasses.dataclass(frozen=True)
class Limits:
  """How an endpoint may be used."""

  concurrency: int = 8
  per_minute: float = 0.0  # 0: no limit
  timeout_seconds: float = 120.0  # of one try, from the request to the last byte
  retries: int = 6

  def __post_init__(self):
    for name, least in (("concurrency", 1), ("per_minute", 0), ("retries", 0)):
      if getattr(self, name) < least:
        raise UserError(f"--{name} is {getattr(self, name)}; it must be at least {least}.")
    if not self.timeout_seconds > 0:
      raise UserError(f"--timeout is {self.timeout_seconds}; it must be above 0 seconds.")


class Pacer:
  """When the next call may begin, for all threads: calls per minute, and waits that were asked for."""

  def __init__(self, per_minute: float, called_off: threading.Event):
    self.gap = 60.0 / per_minute if per_minute else 0.0
    self.called_off = called_off
    self.lock = threading.Lock()
    self.next_start = 0.0

  def wait(self) -> None:
    """Return when a call may begin; Interrupted if the work is called off before."""
    with self.lock:
      start = max(time.monotonic(), self.next_start)
      self.next_start = start + self.gap
    self.sleep(start - time.monotonic())

  def pause(self, seconds: float) -> None:
    """Let no call begin before that time has passed."""
    with self.lock:
      self.next_start = max(self.next_start, time.monotonic() + seconds)

  def sleep(self, seconds: float) -> None:
    if self.called_off.wait(max(0.0, seconds)):
      raise Interrupted


class Endpoint:
  """Answers conversations; safe to call from several threads."""

  def __init__(
    self,
    url: str,
    model: str,
    *,
    key_env: str,
    request: Mapping,
    limits: Limits,
    say: Callable[[str], None] = lambda text: None,
  ):
    """request: what each request holds besides model and messages. key_env "": no key is sent."""
    self.url, self.model, self.request, self.limits = url.rstrip("/"), model, request, limits
    self.called_off = threading.Event()
    self.pacer = Pacer(limits.per_minute, self.called_off)
    self.say, self.said, self.unsaid = say, -SAY_SECONDS, 0
    parts = urllib.parse.urlsplit(self.url)
    self._key = _read_key(key_env, self.url)
    if self._key and parts.scheme == "http" and not _is_loopback(parts.hostname):
      say(f"warning: the key in {key_env} goes to {parts.hostname} unencrypted; use https")
    handlers: list = [_NoRedirect]
    if _is_loopback(parts.hostname):
      handlers.append(urllib.request.ProxyHandler({}))
    self._opener = urllib.request.build_opener(*handlers)

  def complete(self, messages: Sequence[Mapping], where: str) -> Reply:
    """The reply to a conversation; tries again what may pass, Unavailable or Refused where it does not.

    where: what the conversation is about, for messages.
    """
    body = json.dumps(
      {"model": self.model, "messages": list(messages), **self.request}, allow_nan=False
    )
    trouble = ""
    for attempt in range(self.limits.retries + 1):
      self.pacer.wait()
      try:
        return self._once(body.encode("ascii"), where)
      except _Again as e:
        trouble = self._clean(str(e))
        asked = e.retry_after
      if attempt == self.limits.retries:
        break
      if asked is not None and asked > LONGEST_ASKED_WAIT_SECONDS:
        raise Unavailable(f"{self.url} asks to wait {asked:,.0f} s ({trouble}). Run it again then.")
      wait = asked
      if wait is None:
        # Half of the wait is by chance, so that callers who failed together do not return together.
        wait = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2**attempt) * random.uniform(0.5, 1.0)
      else:
        self.pacer.pause(wait)
      self._tell(f"{where}: {trouble}; again in {wait:.1f} s")
      self.pacer.sleep(wait)
    raise Unavailable(
      f"{self.url} did not answer for {where} in {self.limits.retries + 1} tries, the last time: "
      f"{trouble}. See that the endpoint is up and serves {self.model!r}, then run the same command "
      "again: it goes on from what was judged."
    )

  def _tell(self, text: str) -> None:
    """Say it, unless something was said a moment ago: many threads meet the same trouble."""
    with self.pacer.lock:
      quiet = time.monotonic() - self.said < SAY_SECONDS
      unsaid, self.unsaid = self.unsaid, self.unsaid + 1 if quiet else 0
      self.said = self.said if quiet else time.monotonic()
    if not quiet:
      self.say(text + (f" (and {unsaid} more like this)" if unsaid else ""))

  def _once(self, body: bytes, where: str) -> Reply:
    request = urllib.request.Request(f"{self.url}/chat/completions", data=body, method="POST")
    request.add_header("Content-Type", "application/json")
    request.add_header("User-Agent", f"mlit_jax/{mlit_jax.__version__}")
    if self._key:
      request.add_unredirected_header("Authorization", f"Bearer {self._key}")
    deadline = time.monotonic() + self.limits.timeout_seconds
    try:
      with self._opener.open(request, timeout=self.limits.timeout_seconds) as response:
        return self._read(_body(response, deadline))
    except urllib.error.HTTPError as e:
      with e:
        self._refuse(e, where)
    except urllib.error.URLError as e:
      if isinstance(e.reason, ssl.SSLCertVerificationError):
        raise Unavailable(
          f"{self.url}: {e.reason.verify_message}; its certificate is not trusted."
        ) from None
      raise _Again(_reason(e.reason, self.limits.timeout_seconds)) from None
    except (OSError, http.client.HTTPException) as e:
      raise _Again(_reason(e, self.limits.timeout_seconds)) from None

  def _refuse(self, error: urllib.error.HTTPError, where: str):
    """Raise what a status other than 200 means."""
    try:
      said = error.read(10_000).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
      said = ""
    text = self._clean(f"HTTP {error.code} {' '.join(said.split())}".strip())
    if error.code in TRANSIENT:
      raise _Again(text, _retry_after(error.headers.get("Retry-After"))) from None
    if error.code in REFUSED_TEXT:
      raise Refused(
        f"{self.url} will not take the prompt of {where}: {text}. Shorten the answers, mend --request, or "
        "count what is refused as invalid with --on_refusal invalid."
      ) from None
    if error.code in (401, 403):
      raise Unavailable(
        f"{self.url} refuses the key ({text}). Set the variable that --key_env names to a valid one."
      ) from None
    raise Unavailable(
      f"{self.url} answers {where} with {text}. Check the address and the model {self.model!r} in "
      "--judge URL#MODEL; the address ends where /chat/completions begins."
    ) from None

  def _read(self, body: bytes) -> Reply:
    try:
      value = json.loads(body)
      content = value["choices"][0]["message"].get("content")
      if isinstance(content, list):
        content = "".join(part.get("text") or "" for part in content)
      if not isinstance(content, (str, type(None))):
        raise TypeError(f"content is a {type(content).__name__}")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as e:
      start = body[:80].decode("utf-8", "replace")
      raise _Again(f"a reply without choices[0].message.content ({e!r} in {start!r})") from None
    usage = value.get("usage") if isinstance(value.get("usage"), dict) else {}
    return Reply(
      self._without_key(content or ""),
      *(_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens")),
    )

  def _clean(self, text: str) -> str:
    """What a server said, shortened, without the key."""
    text = redact(self._without_key(text))
    return text if len(text) <= NUM_SHOWN else text[:NUM_SHOWN] + "..."

  def _without_key(self, text: str) -> str:
    return text.replace(self._key, "***") if self._key else text


class _Again(Exception):
  """A failure that may pass."""

  def __init__(self, text: str, retry_after: float | None = None):
    super().__init__(text)
    self.retry_after = retry_after


class _NoRedirect(urllib.request.HTTPRedirectHandler):
  def redirect_request(self, *args, **kwargs):
    return None


def _read_key(name: str, url: str) -> str:
  if not name:
    return ""
  key = os.environ.get(name, "").strip()
  if not key:
    raise UserError(
      f"--judge {url} needs a key, and the environment variable {name} is not set. Set it, name "
      "another with --key_env, or say --key_env none for an endpoint without keys."
    )
  if not (key.isascii() and key.isprintable()):  # http.client would print it in its error
    raise UserError(f"the environment variable {name} holds what cannot be a key; set it anew.")
  return key


def _is_loopback(host: str | None) -> bool:
  try:
    return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
  except ValueError:
    return False


def _body(response, deadline: float) -> bytes:
  """All bytes of a reply; the socket's timeout alone would let a drip go on for ever."""
  pieces, size = [], 0
  while piece := response.read1(65536):
    pieces.append(piece)
    size += len(piece)
    if time.monotonic() > deadline:
      raise TimeoutError
    if size > MAX_REPLY_BYTES:
      raise _Again(f"a reply of more than {MAX_REPLY_BYTES:,} bytes")
  return b"".join(pieces)


def _reason(error, timeout_seconds: float) -> str:
  if isinstance(error, TimeoutError):
    return f"no reply within {timeout_seconds:g} s"
  return str(error) or type(error).__name__


def _retry_after(value: str | None) -> float | None:
  """Seconds, from a number or a date; None where there is neither."""
  if value is None:
    return None
  try:
    return max(0.0, float(value))
  except ValueError:
    pass
  try:
    return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
  except ValueError:
    return None


def _count(value) -> int | None:
  return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
