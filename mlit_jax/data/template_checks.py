"""A parsed chat template, with filters of ours around what loops go over and what is kept or written."""

from __future__ import annotations

from collections.abc import Iterator

import jinja2
from jinja2 import nodes

MOST_OPERANDS = 200  # of + and ~ in one expression
OTHER_FILES = (nodes.Block, nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport)
KEPT, OVER = "(kept)", "(over)"  # the filters; no template can spell these names


def with_checks(template: nodes.Template) -> nodes.Template:
  """The template with a filter of ours around what loops go over, and around what is kept."""
  for node in template.find_all(OTHER_FILES):
    raise jinja2.TemplateSyntaxError("a chat template stands alone, without blocks", node.lineno)
  for node in _expressions(template):
    if _operands(node) > MOST_OPERANDS:
      raise jinja2.TemplateSyntaxError(
        f"more than {MOST_OPERANDS} texts are joined in one expression", node.lineno
      )
  for loop in list(template.find_all(nodes.For)):
    weight = 1 + sum(1 for part in loop.body for _ in _below(part))
    grows = nodes.Const(_may_grow(loop.iter))
    loop.iter = _filtered(OVER, loop.iter, nodes.Const(weight), grows)
  for assign in list(template.find_all(nodes.Assign)):
    if _may_grow(assign.node):
      assign.node = _filtered(KEPT, assign.node)
  for scope in list(template.find_all(nodes.With)):
    scope.values = [_filtered(KEPT, value) for value in scope.values]
  for block in list(template.find_all(nodes.AssignBlock)):
    block.filter = _filtered(KEPT, block.filter, lineno=block.lineno)
  gathered = (nodes.Macro, nodes.CallBlock, nodes.FilterBlock, nodes.AssignBlock)
  inside = {id(o) for g in template.find_all(gathered) for o in g.find_all(nodes.Output)}
  for output in list(template.find_all(nodes.Output)):
    least = 2 if id(output) in inside else 5  # elsewhere what is written is counted as it comes
    output.nodes = [_filtered(KEPT, n) if _operands(n) >= least else n for n in output.nodes]
  return template


def _filtered(name: str, value, *args: nodes.Expr, lineno: int = 0) -> nodes.Filter:
  lineno = value.lineno if value is not None else lineno
  return nodes.Filter(value, name, list(args), [], None, None, lineno=lineno)


def _expressions(template: nodes.Template) -> Iterator[nodes.Expr]:
  """Each expression as a whole, not its parts."""
  waiting: list[nodes.Node] = [template]
  while waiting:
    for child in waiting.pop().iter_child_nodes():
      if isinstance(child, nodes.Expr):
        yield child
      else:
        waiting.append(child)


def _below(node: nodes.Node) -> Iterator[nodes.Node]:
  waiting = [node]
  while waiting:
    node = waiting.pop()
    yield node
    waiting += node.iter_child_nodes()


def _operands(node: nodes.Node) -> int:
  """How many values, constants left out, an expression joins by + and ~ or puts into lists."""
  count = 0
  for part in _below(node):
    if isinstance(part, (nodes.Add, nodes.Mul)):
      inner = [part.left, part.right]
      count += sum(not isinstance(i, (nodes.Const, nodes.Add)) for i in inner)
    elif isinstance(part, nodes.Mod):
      count += not isinstance(part.right, nodes.Const)
    elif isinstance(part, (nodes.Concat, nodes.List, nodes.Tuple)):
      inner = part.nodes if isinstance(part, nodes.Concat) else part.items
      count += sum(not isinstance(i, nodes.Const) for i in inner)
    elif isinstance(part, nodes.Dict):
      count += sum(not isinstance(pair.value, nodes.Const) for pair in part.items)
  return count


def _may_grow(node: nodes.Expr) -> bool:
  """Whether an expression may give a longer value than those it is made of. Filters and calls are checked already."""
  return _operands(node) > 0
