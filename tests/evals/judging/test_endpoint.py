import threading
import time

import pytest

from mlit_jax.errors import UserError
from mlit_jax.evals.judging import endpoint as module
from mlit_jax.evals.judging.costs import Prices, estimate, tokens_of
from mlit_jax.evals.judging.endpoint import Endpoint, Limits, Refused, Unavailable
from mlit_jax.evals.judging.judges import EndpointJudge, make_asks, parse_spec
from mlit_jax.evals.judging.pairs import Pair
from mlit_jax.evals.judging.prompts import open_templates
from tests.evals.judging.serving import Served

KEY = "sk-secret-0123456789"
ASK = [{"role": "user", "content": "Kumpi? 你好"}]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
  monkeypatch.setattr(module, "FIRST_WAIT_SECONDS", 0.01)
  monkeypatch.setattr(module, "SAY_SECONDS", 0.0)
  monkeypatch.setenv("A_KEY", KEY)
  monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nobody listens: the loopback needs none


def make(server, said=None, *, key_env="A_KEY", **limits):
  limits = {"timeout_seconds": 5.0, "retries": 3} | limits
  return Endpoint(
    server.url,
    "tiny",
    key_env=key_env,
    request={"temperature": 0, "max_tokens": 9},
    limits=Limits(**limits),
    say=(said if said is not None else []).append,
  )


def echo(messages):
  return "kaiku: " + messages[-1]["content"]


def test_a_request_has_the_openai_schema():
  with Served(echo, key=KEY) as server:
    reply = make(server).complete(ASK, "fi 1")
  assert (reply.text, reply.tokens_in, reply.tokens_out) == ("kaiku: Kumpi? 你好", 100, 7)
  assert server.asked == [{"model": "tiny", "messages": ASK, "temperature": 0, "max_tokens": 9}]
  assert server.keys == [f"Bearer {KEY}"]


def test_no_key_is_sent_where_none_is_named():
  with Served(echo) as server:
    make(server, key_env="").complete(ASK, "fi 1")
  assert server.keys == [None]


@pytest.mark.parametrize("fault", [500, 503, 429, "text", "empty", "closed"])
def test_what_may_pass_is_tried_again(fault):
  said = []
  with Served(echo, lambda n: fault if n < 3 else None) as server:
    assert make(server, said).complete(ASK, "fi 1").text.startswith("kaiku")
  assert len(server.asked) == 3
  assert len(said) == 2 and "fi 1" in said[0] and "again in" in said[0]


def test_the_same_trouble_is_told_once_in_a_while(monkeypatch):
  monkeypatch.setattr(module, "SAY_SECONDS", 60.0)
  said = []
  with Served(echo, lambda n: 500 if n < 4 else None) as server:
    asked = make(server, said)
    asked.complete(ASK, "fi 1")
    assert len(said) == 1
    asked.said -= 60
    asked._tell("again")
  assert said[1] == "again (and 2 more like this)"


@pytest.mark.parametrize(
  "content, text", [(None, ""), ([{"type": "text", "text": "a"}, {"type": "x"}], "a"), (7, None)]
)
def test_contents_that_are_no_text(content, text):
  """Parts are joined, nothing is an empty reply, a number is no reply of this schema."""
  with Served(lambda messages: content) as server:
    if text is None:
      with pytest.raises(Unavailable, match="content is a int"):
        make(server, retries=0).complete(ASK, "fi 1")
    else:
      assert make(server).complete(ASK, "fi 1").text == text


@pytest.mark.parametrize("fault", ["stall", "drip"])
def test_a_try_ends_at_the_timeout(fault):
  """A stall sends nothing; a drip sends a byte now and then, which resets the socket's own clock."""
  said = []
  with Served(echo, lambda n: fault if n == 1 else None) as server:
    began = time.monotonic()
    make(server, said, timeout_seconds=0.5).complete(ASK, "fi 1")
    assert 0.4 < time.monotonic() - began < 4
  assert "no reply within 0.5 s" in said[0]


def test_waits_grow_and_are_spread(monkeypatch):
  monkeypatch.setattr(module, "FIRST_WAIT_SECONDS", 1.0)
  with Served(echo, lambda n: 500) as server:
    asked = make(server, retries=5)
    waits = []
    asked.pacer.sleep = waits.append
    with pytest.raises(Unavailable):
      asked.complete(ASK, "fi 1")
  waits = [wait for wait in waits if wait > 0.2]
  assert len(waits) == 5
  for attempt, wait in enumerate(waits):
    assert 0.5 * 2**attempt <= wait <= 2**attempt
  assert len({round(wait / 2**attempt, 6) for attempt, wait in enumerate(waits)}) > 1


@pytest.mark.parametrize("value, least", [("1", 1.0), (time.time, 0.9)])
def test_retry_after_is_honoured_by_all_threads(value, least):
  """One is told to wait; the others begin no call meanwhile. Seconds or a date."""
  from email.utils import formatdate

  text = value if isinstance(value, str) else formatdate(value() + 3, usegmt=True)
  with Served(echo, lambda n: (429, {"Retry-After": text}) if n == 1 else None) as server:
    asked = make(server)
    first = threading.Thread(target=asked.complete, args=(ASK, "fi 1"))
    first.start()
    while len(server.asked) < 1:
      time.sleep(0.01)
    time.sleep(0.2)
    asked.complete(ASK, "fi 2")
    first.join()
  assert len(server.asked) == 3
  assert min(server.times[1:]) - server.times[0] >= least


def test_who_asks_for_an_hour_is_asked_again_by_hand():
  with (
    Served(echo, lambda n: (429, {"Retry-After": "3600"})) as server,
    pytest.raises(Unavailable, match=r"asks to wait 3,600 s \(HTTP 429 later\)"),
  ):
    make(server).complete(ASK, "fi 1")
  assert len(server.asked) == 1


def test_calls_per_minute():
  with Served(echo) as server:
    asked = make(server, per_minute=600)
    threads = [threading.Thread(target=asked.complete, args=(ASK, "x")) for _ in range(6)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
  assert max(server.times) - min(server.times) >= 0.45  # five gaps of 0.1 s, less the way there


def test_an_endpoint_that_stays_down_is_named():
  with Served(echo, lambda n: 502) as server, pytest.raises(Unavailable) as e:
    make(server).complete(ASK, "fi 1")
  assert len(server.asked) == 4
  for part in (server.url, "fi 1", "4 tries", "HTTP 502", "'tiny'", "the same command again"):
    assert part in str(e.value)


def test_a_port_where_nobody_listens():
  with Served(echo) as server:
    gone = make(server, retries=1)
  with pytest.raises(Unavailable, match=r"2 tries.*refused"):
    gone.complete(ASK, "fi 1")


@pytest.mark.parametrize("fault, kind", [(400, Refused), (413, Refused), (404, Unavailable)])
def test_what_will_not_pass_is_not_tried_again(fault, kind):
  with Served(echo, lambda n: fault) as server, pytest.raises(kind, match=f"HTTP {fault}"):
    make(server).complete(ASK, "fi 1")
  assert len(server.asked) == 1


def test_the_key_is_in_no_message(monkeypatch, tmp_path):
  """Not even where the server repeats it, nor in what a redirect would be sent."""
  said = []
  with Served(echo, key="another") as server, pytest.raises(Unavailable) as e:
    make(server, said).complete(ASK, "fi 1")
  assert "refuses the key" in str(e.value) and "***" in str(e.value)
  assert KEY not in str(e.value) + repr(e.value.__dict__) + repr(e.value.__context__) + str(said)
  with Served(echo, lambda n: 301) as server, pytest.raises(Unavailable, match="HTTP 301"):
    make(server, said).complete(ASK, "fi 1")
  assert len(server.asked) == 1  # nobody went where it pointed
  with Served(lambda messages: f"your key is {KEY}") as server:
    assert make(server).complete(ASK, "fi 1").text == "your key is ***"
  monkeypatch.setenv("A_KEY", KEY + "\nX-Evil: 1")
  with pytest.raises(UserError) as e, Served(echo) as server:
    make(server)
  assert "cannot be a key" in str(e.value) and KEY not in str(e.value)


def test_a_missing_key_is_named():
  with Served(echo) as server, pytest.raises(UserError, match=r"variable NO_SUCH.*--key_env none"):
    make(server, key_env="NO_SUCH")


def test_a_key_in_the_clear_is_warned_of():
  said = []
  Endpoint("http://judge.example/v1", "m", key_env="A_KEY", request={}, limits=Limits(), say=said.append)  # fmt: skip
  assert "unencrypted" in said[0] and KEY not in said[0]


@pytest.mark.parametrize(
  "spec, part",
  [
    ("https://host/v1", "names no model"),
    ("https://user:secret@host/v1#m", "environment variable"),
    ("https://host/v1?key=secret#m", "environment variable"),
    ("http://#m", "names no host"),
    ("gpt-4", "expected https://HOST/v1#MODEL"),
    ("model:", "expected https://HOST/v1#MODEL"),
  ],
)
def test_a_judge_that_cannot_be_read(spec, part):
  with pytest.raises(UserError, match=part) as e:
    parse_spec(spec)
  assert "secret" not in str(e.value)


def test_specs():
  assert parse_spec("https://h:1/v1#org/m:free").where == "https://h:1/v1"
  assert parse_spec("https://h:1/v1#org/m:free").model == "org/m:free"
  assert parse_spec("people:a/b c.csv").where == "a/b c.csv"


# --- the judge around it


def asks_for(judge, num):
  pairs = [
    Pair(str(i), "en", str(i), f"Question {i}?", f"One {i}.", f"Two {i}.") for i in range(num)
  ]
  return make_asks(pairs, judge.identity, templates=open_templates(["en"]))


def test_concurrency_is_used_and_kept_to():
  with Served(lambda m: "[[A]]", delay=0.1) as server:
    judge = EndpointJudge(make(server, concurrency=3))
    outcomes = {ask.place: o for ask, o in judge.judge(asks_for(judge, 6))}
  assert len(outcomes) == 12 and {o.choice for o in outcomes.values()} == {"first"}
  assert server.most_at_once == 3


def test_an_unreadable_reply_is_asked_for_once_more():
  def answer(messages):
    text = messages[-1]["content"]
    return "[[B]]" if "give no reasons" in text and "Question 0" in text else "Both are nice."

  with Served(answer) as server:
    judge = EndpointJudge(make(server))
    outcomes = {ask.place: o for ask, o in judge.judge(asks_for(judge, 2))}
  assert outcomes["en", "0", "ab"].choice == "second"
  assert outcomes["en", "1", "ab"].choice is None
  assert [len(o.replies) for o in outcomes.values()] == [2] * 4
  assert len(server.asked) == 8
  assert outcomes["en", "0", "ab"].tokens_in == 200  # both were paid for


def test_a_failure_gives_what_came_before_it():
  """Calls under way are waited for: they are paid for."""

  def fault(n):
    return 404 if n == 4 else None

  with Served(lambda m: "[[A]]", fault, delay=0.3) as server:
    judge = EndpointJudge(make(server, concurrency=4))
    got = []
    with pytest.raises(Unavailable, match="HTTP 404"):
      for ask, _ in judge.judge(asks_for(judge, 20)):
        got.append(ask)
  assert len(got) == len(server.answered) == 3
  assert len(server.asked) == 4


def test_a_refused_prompt_stops_or_counts_as_invalid():
  with Served(lambda m: "[[A]]", lambda n: 400 if n == 1 else None) as server:
    judge = EndpointJudge(make(server, concurrency=1), on_refusal="invalid")
    outcomes = [o.choice for _, o in judge.judge(asks_for(judge, 2))]
  assert outcomes == [None, "first", "first", "first"]
  with (
    Served(lambda m: "[[A]]", lambda n: 400) as server,
    pytest.raises(Refused, match="--on_refusal"),
  ):
    judge = EndpointJudge(make(server, concurrency=1))
    list(judge.judge(asks_for(judge, 2)))


def test_spending_stops_at_the_limit():
  """Each call costs 100 tokens at 10 and 7 at 100 per million: 0.0017."""
  with Served(lambda m: "[[A]]") as server:
    prices = Prices(10.0, 100.0)
    judge = EndpointJudge(make(server, concurrency=1), prices=prices, max_cost=0.004)
    got = []
    with pytest.raises(UserError, match=r"has cost 0.0051, more than --max_cost 0.004"):
      for ask, _ in judge.judge(asks_for(judge, 10)):
        got.append(ask)
  assert 3 <= len(got) <= 4


def test_the_estimate_by_its_rule():
  assert tokens_of(["abcde", "", "ab", "你好 x"]) == 2 + 0 + 1 + 3
  conversations = [ASK, ASK]
  expected = estimate(conversations, max_new_tokens=50, prices=Prices(1.0, 2.0))
  assert (expected.calls, expected.tokens_in, expected.tokens_out) == (2, 8, 100)
  assert expected.cost == pytest.approx((8 * 1 + 100 * 2) / 1e6)
  assert "2 calls, about 8 tokens" in expected.text() and "0.000208" in expected.text()
