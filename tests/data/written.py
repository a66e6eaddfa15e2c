"""Files of rows for tests."""

import json


def write(path, rows, *, ascii=False):
  lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=ascii) for row in rows]
  path.write_bytes("".join(line + "\n" for line in lines).encode("utf-8", "surrogatepass"))
  return str(path)


def messages(*contents, roles=("user", "assistant")):
  return [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]
