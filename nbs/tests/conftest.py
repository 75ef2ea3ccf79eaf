"""What the tests of trust count: `@pytest.mark.trust(table, what)` puts a test into a table of nbs/results/trust.json.

    pytest nbs/tests              # run them
    pytest nbs/tests -n 2         # in two processes
    pytest nbs/tests --publish    # and write the tables
"""
import os, signal, sys
from collections import defaultdict
from pathlib import Path

import pytest

os.environ.setdefault('OMP_NUM_THREADS', '1')       # before torch is imported: the tests start many small processes
if hasattr(signal, 'SIGHUP'): signal.signal(signal.SIGHUP, signal.SIG_DFL)    # some tests hang up; under nohup nobody would hear
sys.path.append(str(Path(__file__).parent.parent/'experiments'))      # some tests run an experiment in small
RESULTS = Path(__file__).parent.parent/'results'/'trust.json'
TRUST = defaultdict(lambda: dict(injected=0, survived=0, not_run=0))         # by table and row


def pytest_addoption(parser): parser.addoption('--publish', action='store_true', help='write the tables of the tests of trust to nbs/results/trust.json')


def pytest_configure(config):
    config.addinivalue_line('markers', 'trust(table, what): a row of a table; the fixture `cases` says how many cases the test tries, if not one')
    config.addinivalue_line('markers', 'browser: needs a browser, Voilà and JupyterLab: pip install -e \'.[browser]\'')


@pytest.fixture
def cases(record_property):
    "cases(n): this test tries `n` cases, not one."
    return lambda n: record_property('cases', n)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    "A report says which row it belongs to, also when it comes from another process (pytest -n 2)."
    report = (yield).get_result()
    if mark := item.get_closest_marker('trust'): report.trust = list(mark.args)


def pytest_runtest_logreport(report):
    if not hasattr(report, 'trust') or not (report.when == 'call' or (report.when == 'setup' and not report.passed)): return
    row, n = TRUST[tuple(report.trust)], dict(report.user_properties).get('cases', 1)
    if report.skipped: row['not_run'] += n
    else:
        row['injected'] += n
        row['survived'] += n*report.passed


def pytest_sessionfinish(session):
    if not session.config.getoption('--publish') or hasattr(session.config, 'workerinput'): return
    from cifar_resnet.runs import read_json, write_json
    tables = read_json(RESULTS) if RESULTS.exists() else {}
    new = defaultdict(list)
    for (table, what), row in sorted(TRUST.items()): new[table].append(dict(what=what, **row))
    for table, rows in new.items():                              # a row that was not tried this time stays as it is
        tried = {row['what'] for row in rows}
        rows += [row for row in tables.get(table, []) if row['what'] not in tried]
        rows.sort(key=lambda row: row['what'])
    write_json(RESULTS, {**tables, **new, 'command': 'pytest nbs/tests --publish'})
