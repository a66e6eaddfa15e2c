"""Trees of messages, as Open Assistant publishes them -> the best-ranked conversation of each.

From the root, at each level the reply that is not deleted and has the best rank: 0 is best, a reply without
a rank comes after those with one, and among equals the first in the file. The conversation ends with its
last assistant turn. One conversation a tree.

      q ── a  rank 1                         q
        └─ b  rank 0 ── r ── c  rank 1   ->  b
                          └─ d  rank 0       r
                                             d
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from mlit_jax.data.files import BadRow, parse_json, shorten

MESSAGE_KEYS = ("message_id", "role", "text")  # parent_id too, but in a table a root has none
ASSISTANT = ("assistant", "gpt", "bot", "model", "ai")


class Picked(dict):
  """The row that became of a tree: `messages`, `lang` and `group_id`."""


def is_message(row: object) -> bool:
  """Whether a row is one message of a tree, the others being rows of their own."""
  return (
    isinstance(row, Mapping)
    and all(key in row for key in MESSAGE_KEYS)
    and not any(key in row for key in ("messages", "conversations", "replies"))
  )


def is_tree(row: Mapping) -> bool:
  """Whether a row is a whole tree, its replies nested."""
  return "replies" in row or (isinstance(row.get("prompt"), Mapping) and "replies" in row["prompt"])


def pick_nested(row: Mapping) -> Picked:
  """The conversation of a tree whose replies are nested, {"prompt": {"text", "role", "replies"}}."""
  root = row["prompt"] if isinstance(row.get("prompt"), Mapping) else row
  return _pick(root, _replies, row.get("group_id"))


def pick_trees(
  rows: Iterable[tuple[int, object]], rename: Callable[[dict], dict] = dict
) -> Iterator[tuple[int, Picked | BadRow]]:
  """The conversations of trees whose messages are rows; each has the number of its root.

  A message whose tree has no root is a bad row, and so is what is no message. The messages of the
  whole file are kept in memory: replies may stand anywhere.
  """
  nodes: dict[str, tuple[int, dict]] = {}
  out: list[tuple[int, Picked | BadRow]] = []
  for number, raw in rows:
    try:
      message = _message(raw, rename)
      if message["message_id"] in nodes:
        raise BadRow(
          "duplicate",
          f"the message_id {shorten(message['message_id'])} stands twice.",
          "Remove one of the messages.",
        )
      nodes[message["message_id"]] = (number, message)
    except BadRow as bad:
      out.append((number, bad))
  children: dict[str, list[dict]] = {}
  reached, roots = set(), []
  for number, message in nodes.values():
    if message["parent_id"] in (None, ""):
      roots.append((number, message))
    else:
      children.setdefault(message["parent_id"], []).append(message)
  for number, root in roots:
    try:
      replies = lambda message: children.get(message["message_id"], ())  # noqa: E731
      out.append((number, _pick(root, replies, root.get("group_id"))))
    except BadRow as bad:
      out.append((number, bad))
    waiting = [root["message_id"]]
    while waiting:
      reached.add(name := waiting.pop())
      waiting += [child["message_id"] for child in children.get(name, ())]
  out += [
    (
      number,
      BadRow(
        "no parent",
        f"the message {shorten(name)} belongs to no tree: following parent_id from it finds no root.",
        "Add the messages above it, or remove it.",
        message["lang"],
      ),
    )
    for name, (number, message) in nodes.items()
    if name not in reached
  ]
  yield from sorted(out, key=lambda entry: entry[0])


def _message(raw, rename) -> dict:
  """What is kept of a message, or BadRow."""
  if isinstance(raw, BadRow):
    raise raw
  row = parse_json(raw) if isinstance(raw, bytes) else raw
  row = rename(row) if isinstance(row, Mapping) else row
  # The root of a table of columns has no parent_id: an empty column is left out.
  if not isinstance(row, Mapping) or not is_message({"parent_id": None, **row}):
    raise BadRow(
      "unknown shape",
      f"the row is {shorten(row)}, not a message of a tree.",
      f"Such a row has {', '.join(MESSAGE_KEYS)} and parent_id.",
    )
  for key in ("message_id", "parent_id"):
    if not isinstance(row.get(key), str | int | None):
      raise BadRow("not text", f"{key} is {shorten(row[key])}, not text.", "Give a string.")
  kept = ("message_id", "parent_id", "role", "text", "lang", "rank", "deleted", "group_id")
  return {key: row.get(key) for key in kept}


def _replies(message: Mapping) -> Sequence:
  replies = message.get("replies") or ()
  if not isinstance(replies, Sequence) or not all(isinstance(r, Mapping) for r in replies):
    raise BadRow(
      "unknown shape", f"replies is {shorten(replies)}, not a list of messages.", "Give a list."
    )
  return replies


def _pick(root: Mapping, replies_of: Callable[[Mapping], Sequence], group_id) -> Picked:
  lang = root.get("lang")
  if root.get("deleted"):
    raise BadRow("deleted", "the first message of the tree is deleted.", "Remove the tree.", lang)
  path, best = [], root
  while best is not None:
    path.append(best)
    left = [reply for reply in replies_of(best) if not reply.get("deleted")]
    best = min(left, key=_rank, default=None)  # min gives the first of equals
  while path and _role(path[-1]) not in ASSISTANT:
    path.pop()
  if not path:
    raise BadRow(
      "roles",
      "the tree has no answer on its best-ranked path.",
      "Add one, or remove the tree.",
      lang,
    )
  tags = [message["lang"] for message in path if message.get("lang") not in (None, "")]
  if any(tag != tags[0] for tag in tags):
    raise BadRow(
      "other language",
      f"the messages of the tree say lang = {shorten(tags)}.",
      "Split the tree by language, or remove it.",
      lang,
    )
  turns = [{"role": m.get("role"), "content": m.get("text")} for m in path]
  return Picked(messages=turns, lang=tags[0] if tags else None, group_id=group_id)


def _role(message: Mapping) -> str:
  role = message.get("role")
  return role.strip().lower() if isinstance(role, str) else ""


def _rank(message: Mapping) -> float:
  rank = message.get("rank")
  if isinstance(rank, bool) or not isinstance(rank, int | float) or rank != rank:
    return float("inf")
  return rank
