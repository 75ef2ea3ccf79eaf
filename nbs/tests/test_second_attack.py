"A second attack on what withstood the first: run folders, sweeps, fetching and commands, by other means."
import ast
from collections import Counter
from pathlib import Path

import pytest

def hard(kind): return pytest.mark.trust('hard knocks', kind)

ROOT = Path(__file__).parents[2]


# a name that is defined twice: the later definition silently takes the place of the earlier one

def twice(body):
    "The functions, classes and plain names that a body of statements defines more than once; of its classes too."
    names = Counter()
    for node in body:
        if isinstance(node, ast.Assign): names.update(t.id for t in node.targets if isinstance(t, ast.Name))
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names[node.name] += not any(ast.unparse(d).endswith('.setter') for d in node.decorator_list)
        if isinstance(node, ast.ClassDef): yield from twice(node.body)
    yield from (name for name, n in names.items() if n > 1)

@hard('two definitions of one name')
@pytest.mark.parametrize('path', [*(ROOT/'cifar_resnet').glob('*.py'), *Path(__file__).parent.glob('*.py')], ids=lambda p: p.stem)
def test_no_name_is_defined_twice(path): assert not [*twice(ast.parse(path.read_text()).body)]
