"What a newcomer meets at the command line: progress that can be read, flags that say what they can be, names that do nothing."
import fcntl, json, os, re, shutil, struct, sys, termios, threading, unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cifar_resnet import data, job as job_module
from cifar_resnet.cli import _figure_names, bench_main, explain_main, main, sweep_main, train_parser
from cifar_resnet.core import duration, sentence, visible, watched
from cifar_resnet.job import epoch_line, time_to_go
from cifar_resnet.recipe import CHOICES, Recipe, near, recipe_from
from cifar_resnet.train import BACKENDS, Training

def hard(kind): return pytest.mark.trust('commands and figures', kind)

TINY = '--dataset shapes10 --width 2 --epochs 3 --limit 400 --device cpu --no_test'.split()
EPOCHS = re.compile(r'^epoch (\d+)/3: ')


@pytest.fixture(scope='module', autouse=True)
def drawn_once():
    "The data are drawn once for all."
    drawn = data.shapes10()
    with pytest.MonkeyPatch.context() as m:
        m.setattr(data, 'shapes10', lambda variant='clean': drawn)
        yield

@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp('finished')/'run'
    assert main([*TINY, '--out', str(out)]) == 0
    return out


# progress in a terminal

class Terminal:
    "A pseudo-terminal of so many columns, and what was written to it."
    def __init__(self, columns):
        self.shown, (self.outer, inner) = b'', os.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack('HHHH', 24, columns, 0, 0))
        self.stream = os.fdopen(inner, 'w')
        self.reader = threading.Thread(target=self._read, daemon=True); self.reader.start()

    def _read(self):
        try:
            while data := os.read(self.outer, 4096): self.shown += data
        except OSError: pass                                                        # the other side is closed

    def close(self):
        self.stream.close(); self.reader.join(30); os.close(self.outer)
        return self.shown.decode()

@pytest.fixture
def in_terminal(monkeypatch, tmp_path):
    def run(columns, *argv):
        terminal = Terminal(columns)
        with monkeypatch.context() as m:
            m.setattr(sys, 'stderr', terminal.stream); m.delenv('TQDM_DISABLE', raising=False)
            code = main([*argv, '--out', str(tmp_path/'run')])
        return code, terminal.close()
    return run

@hard('progress')
@pytest.mark.parametrize('columns', [200, 80, 60])
def test_a_terminal_shows_all_four_and_wraps_nothing(in_terminal, columns):
    code, shown = in_terminal(columns, *TINY)
    assert code == 0 and 'epoch 1/3   ' in shown                                    # the bar
    pieces = re.split('[\r\n]+', shown)
    assert max(map(len, pieces)) < columns                                          # a line as wide as the terminal may wrap
    lines = [piece for piece in pieces if EPOCHS.match(piece)]
    assert [int(EPOCHS.match(line)[1]) for line in lines] == [1, 2, 3]
    for line in lines: assert re.search(r'loss \d+\.\d{3}, .*\d\d?\.\d\d%.*, .*rate \d', line), line
    assert '\x1b' not in shown.replace('\x1b[A', '')                                # no colours

@hard('progress')
@pytest.mark.parametrize('columns', [40, 60, 80, 100, None])
@pytest.mark.parametrize('epochs', [1, 40, 100_000])
def test_epoch_lines_fit(columns, epochs):
    for loss in (.0004, 2.3026, 1234.5):
        line = epoch_line(dict(epoch=epochs, lr=1.2345e-4, train_loss=loss, valid_loss=loss, train_accuracy=.5, valid_accuracy=1., seconds=4321.), epochs, columns)
        assert columns is None or len(line) < columns
        assert f'epoch {epochs}/{epochs}: ' in line and '100.00%' in line
        if columns is None: assert line.endswith(f'training loss {loss:.3f}, held-out loss {loss:.3f}, held-out accuracy 100.00%, learning rate 0.000123, 1 h 12 min')
        elif columns >= 60 and epochs < 99: assert f'loss {loss:.3f}' in line and 'rate 0.000123' in line


# progress in a file

@hard('progress')
def test_a_file_gets_a_line_an_epoch_as_it_comes(tmp_path, monkeypatch, capsys):
    log, seen, usual = tmp_path/'log', [], job_module.append_history
    def looked(path, row):
        seen.append((row['epoch'], log.read_text()))
        return usual(path, row)
    monkeypatch.setattr(job_module, 'append_history', looked)
    with open(log, 'w', buffering=2**16) as f, monkeypatch.context() as m:          # a stream that keeps what is not flushed
        m.setattr(sys, 'stderr', f)
        assert main([*TINY, '--out', str(tmp_path/'run')]) == 0
    text = log.read_text()
    assert '\r' not in text and '\x1b' not in text and len(text) < 1000
    plan, left, *epochs = text.splitlines()
    assert plan == (f'shapes10, strict recipe: a network of width 2 with 11,420 parameters, 400 images, 3 epochs, on cpu in float32; into {tmp_path/"run"}')
    assert re.fullmatch(r'about \d+(\.\d)? (s|min)( \d+ s)? to go', left)
    line = r'epoch {}/3: training loss \d\.\d{{3}}, held-out loss \d\.\d{{3}}, held-out accuracy \d+\.\d\d%, learning rate 0\.001, \d+(\.\d)? s'
    for i, said in enumerate(epochs, 1): assert re.fullmatch(line.format(i), said), said
    assert len(epochs) == 3
    assert len(seen) == 3
    for n, then in seen[1:]: assert f'epoch {n-1}/3' in then and f'epoch {n}/3' not in then         # as soon as it is known

@hard('progress')
def test_a_resumed_run_says_where_it_goes_on(tmp_path, capsys):
    out = ['--out', str(tmp_path/'run')]
    with pytest.MonkeyPatch.context() as m:
        usual = job_module.append_history
        def stops(path, row):
            usual(path, row)
            raise KeyboardInterrupt
        m.setattr(job_module, 'append_history', stops)
        assert main([*TINY, *out, '--save_every_s', '0']) == 130
    capsys.readouterr()
    assert main([*out, '--resume', '--no_test']) == 0
    plan, *lines = capsys.readouterr().err.splitlines()
    assert '400 images, epochs 2 to 3, on cpu' in plan
    assert [EPOCHS.match(line)[1] for line in lines if EPOCHS.match(line)] == ['2', '3']

@hard('progress')
def test_a_finished_run_says_that_nothing_was_trained(finished, capsys):
    assert main([*TINY, '--out', str(finished)]) == 0
    out, err = capsys.readouterr()
    first, *results = out.splitlines()
    assert re.fullmatch(r'finished on \d{4}-\d\d-\d\d, \d\d:\d\d: nothing was trained', first) and not err
    assert results[0].startswith('held-out accuracy ') and re.search(r'trained for \d+(\.\d)? s$', results[1])

@hard('progress')
def test_a_test_set_that_is_opened_later_trains_nothing(finished, tmp_path, capsys):
    run = shutil.copytree(finished, tmp_path/'run')
    assert main([*TINY[:-1], '--out', str(run)]) == 0
    first, result, *_ = capsys.readouterr().out.splitlines()
    assert first.endswith('nothing was trained') and result.startswith('test accuracy ')

@hard('progress')
def test_a_new_run_does_not_say_it(tmp_path, capsys):
    assert main([*TINY, '--epochs', '1', '--out', str(tmp_path/'run')]) == 0
    assert 'nothing was trained' not in capsys.readouterr().out

@hard('progress')
def test_without_progress_nothing_is_said(tmp_path, capsys):
    job_module.job(dict(dataset='shapes10', width=2, epochs=1, limit=400), tmp_path/'run', device='cpu', progress=False, read_test=False, draw=False)
    assert capsys.readouterr() == ('', '')

@hard('progress')
@pytest.mark.parametrize('seconds, said', [
    (0, '0.0 s'), (.25, '0.2 s'), (9.94, '9.9 s'), (9.96, '10 s'), (59.4, '59 s'), (59.7, '1 min'), (252, '4 min 12 s'), (3599.6, '1 h'),
    (4320, '1 h 12 min'), (86_400, '1 d'), (183_600, '2 d 3 h'), (10**7, '115 d 17 h')])
def test_times(seconds, said): assert duration(seconds) == said

@hard('progress')
def test_hours_are_said_in_hours():
    from cifar_resnet.data import shapes10
    assert time_to_go(Training(Recipe(dataset='shapes10', width=64), shapes10()[0], device='cpu'), 20).startswith('about 5 h 4 min to go on this processor')

@hard('progress')
def test_who_watches(tmp_path):
    with open(tmp_path/'file', 'w') as f: assert not watched(f)
    terminal = Terminal(80)
    assert watched(terminal.stream)
    terminal.close()
    assert watched(type('OutStream', (), dict(__module__='ipykernel.iostream', isatty=lambda self: False))())   # a notebook


# flags

def stopped(command, argv, capsys):
    "What a command says of wrong flags."
    try: code = command(argv)
    except SystemExit as e: code = e.code
    out, err = capsys.readouterr()
    assert code == 2 and not out and err.count('\n') == 1, out + err
    return err

@hard('flags')
@pytest.mark.parametrize('argv, meant', [
    ('--batch-size 64', '--batch_size'), ('--batchsize 64', '--batch_size'), ('--batch-size=64', '--batch_size'), ('--Epochs 3', '--epochs'),
    ('--epoch 3', '--epochs'), ('-epochs 3', '--epochs'), ('--optimizer adam', '--optimiser'), ('--weight-decay 0', '--weight_decay'),
    ('--datadir x', '--data_dir'), ('--no-test', '--no_test'), ('--widht 16', '--width'), ('--save-every-s 9', '--save_every_s'), ('--normm layer', '--norm')])
def test_a_flag_that_is_nearly_one(argv, meant, capsys):
    flag = argv.split()[0].partition('=')[0]
    assert f': there is no flag {flag} (did you mean {meant}?);' in stopped(main, argv.split(), capsys)
    if meant != '--no_test': assert f'(did you mean {meant}?)' in stopped(sweep_main, ['-', *argv.split()], capsys)

@hard('flags')
def test_a_mistyped_flag_is_named_before_what_else_is_missing(capsys):
    assert 'there is no flag --runn (did you mean --run?)' in stopped(explain_main, ['--runn', 'x', 'picture.png'], capsys)
    assert 'arguments are required: PICTURE' in stopped(explain_main, ['--run', 'x'], capsys)

@hard('flags')
@pytest.mark.parametrize('argv', ['--bogus 1', '--engin rows', '--zzz'])
def test_a_flag_that_is_like_none(argv, capsys):
    "No guess, and nothing that is not in --help, is offered."
    assert f'there is no flag {argv.split()[0]}; ' in stopped(main, argv.split(), capsys)

@hard('flags')
@pytest.mark.parametrize('argv, meant', [
    ('--recipe bset', 'best'), ('--recipe BEST', 'best'), ('--recipe strickt', 'strict'), ('--dataset cifar-10', 'cifar10'), ('--dataset CIFAR100', 'cifar100'),
    ('--dataset shape10', 'shapes10'), ('--norm btach', 'batch'), ('--norm group-8', 'group8'), ('--optimiser adamW', 'adamw'), ('--optimiser moun', 'muon'),
    ('--schedule linaer', 'linear'), ('--filters zero-mean', 'zero_mean'), ('--flip randm', 'random'), ('--variant shortcuts', 'shortcut'), ('--precision bf-16', 'bf16')])
def test_a_value_that_is_nearly_one(argv, meant, capsys):
    said = stopped(main, argv.split(), capsys)
    assert f'(did you mean {meant}?)' in said and re.search(r'choose .* or ', said)

@hard('flags')
@pytest.mark.parametrize('argv', ['--recipe fastest', '--norm 7', '--dataset mnist', '--precision half', '--schedule xyz'])
def test_a_value_that_is_like_none(argv, capsys):
    said = stopped(main, argv.split(), capsys)
    assert 'did you mean' not in said and 'choose ' in said

@hard('flags')
def test_a_backend_that_is_nearly_one(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert 'choose eager, rows, compile, graph, or rows+compile, rows+graph (did you mean compile?)' in stopped(main, [*TINY, '--backend', 'compil'], capsys)
    assert 'did you mean fp32?' in stopped(bench_main, ['--precision', 'fp23'], capsys)

@hard('flags')
@pytest.mark.parametrize('flag, names', [*((f, CHOICES[f]) for f in CHOICES), ('device', ('auto', 'cpu', 'cuda')), ('backend', tuple(BACKENDS)), ('precision', ('auto', 'fp32', 'bf16', 'fp16'))])
def test_help_lists_what_a_flag_may_be(flag, names):
    action = train_parser()._option_string_actions[f'--{flag}']
    assert all(re.search(rf'\b{re.escape(name)}\b', action.help) for name in names), action.help

@hard('flags')
def test_help_has_no_colours(capsys, monkeypatch):
    monkeypatch.setenv('FORCE_COLOR', '1'); monkeypatch.delenv('NO_COLOR', raising=False)       # Python 3.14 would
    for argv in (['--help'], ['--bogus']):
        with pytest.raises(SystemExit): main(argv)
        assert '\x1b' not in ''.join(capsys.readouterr())

@hard('flags')
def test_values_that_look_like_flags_are_left_alone(capsys):
    args = train_parser().parse_args(['--lr', '-1', '--out=-strange', '--epochs=3'])
    assert (args.lr, args.out, args.epochs) == (-1, '-strange', 3)

@hard('flags')
@pytest.mark.parametrize('word, names, said', [
    ('bset', ('strict', 'best'), ' (did you mean best?)'), ('x', ('strict', 'best'), ''), (7, ('a',), ''), (None, ('a',), ''), ('', ('a',), ''), ([], ('a',), '')])
def test_near(word, names, said): assert near(word, names) == said

@hard('flags')
def test_fields_in_a_table_are_guessed_too():
    with pytest.raises(ValueError, match=r"no field 'batchsize': choose from .*\(did you mean batch_size\?\)"): recipe_from(dict(batchsize=3))


# numbers for people

@hard('numbers')
def test_results_are_in_percent_with_separators(finished, capsys):
    main([*TINY, '--out', str(finished)])
    out = capsys.readouterr().out
    assert re.search(r'accuracy \d+\.\d\d% \(95% interval \d+\.\d\d% to \d+\.\d\d%\)', out) and '11,420 parameters' in out and not re.search(r'\b0\.\d\d', out.replace(str(finished), ''))


# names

ESCAPES = ['\x1b[2J', 'a\x07b\x08', '\u202egnp', '\x9b31m', 'x\ry', '\x1b]0;title\x07', 'a\x7fb', 'line\u2028two']

@hard('names')
@pytest.mark.parametrize('name', ESCAPES)
def test_escapes_are_shown_and_not_obeyed(name):
    for shown in (visible(name), sentence(FileNotFoundError(2, 'No such file', name)), sentence(ValueError(f'{name!s} is bad'))):
        assert shown.isprintable(), shown
    assert '\\' in visible(name)

@hard('names')
@pytest.mark.parametrize('name', ['für', 'Ελλάδα', '猫の写真', 'می\u200cخواهم', '👩\u200d💻', 'Bild 1,\u202f10\xa0h', 'é', r'back\slash'])
def test_names_of_all_languages_stay(name): assert visible(name) == name

def picture(path, shade=0):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.full((32,32,3), shade, np.uint8)).save(path, 'PNG')
    return path

def explained(finished, target, out, capsys):
    code = explain_main([str(target), '--run', str(finished), '--out', str(out)])
    return code, *capsys.readouterr()

@hard('names')
@pytest.mark.parametrize('name', ESCAPES)
def test_a_picture_of_any_name(name, finished, tmp_path, capsys):
    picture(tmp_path/'album'/f'{name}.png'); (tmp_path/'album'/f'{name}!.png').write_text('no picture')
    code, out, err = explained(finished, tmp_path/'album', tmp_path/'figures', capsys)
    assert code == 2 and len(list((tmp_path/'figures').iterdir())) == 1
    assert all(line.isprintable() for line in (out + err).split('\n')), out + err
    assert err.count('\n') == 2 and 'cannot be read as a picture' in err

@hard('names')
def test_other_messages_with_such_names(tmp_path, capsys, finished):
    bad = tmp_path/'\x1b[2J'
    (bad/'sub').mkdir(parents=True); picture(bad/'x.png')
    for command, argv in ((main, ['--dataset', f'folder:{bad}', '--device', 'cpu', '--out', str(tmp_path/'o')]), (main, [*TINY, '--out', str(bad)]), (main, ['--weights', str(bad/'w')]),
                          (explain_main, [str(bad/'gone'), '--run', str(finished)]), (explain_main, ['x.png', '--run', str(bad)]), (main, ['--\x1b[2J']), (main, ['\x1b[2J'])):
        assert stopped(command, argv, capsys)[:-1].isprintable(), argv
    code, out, err = explained(finished, bad, tmp_path/'figures', capsys)           # a warning names the folders in it
    assert code == 0 and 'holds folders' in err and err[:-1].isprintable()

@hard('names')
@pytest.mark.parametrize('name', ['a'*240, 'ü'*120, '猫'*80, 'a'*251])
def test_a_long_name_does_not_end_a_folder(name, finished, tmp_path, capsys):
    picture(tmp_path/'album'/f'{name}.png'); picture(tmp_path/'album'/'short.png', 9)
    code, out, err = explained(finished, tmp_path/'album', tmp_path/'figures', capsys)
    made = sorted(p.name for p in (tmp_path/'figures').iterdir())
    assert (code, err) == (0, '') and len(made) == 2 and 'short-gradcam.png' in made
    assert all(len(os.fsencode(m + '.part')) <= 255 and m.endswith('-gradcam.png') for m in made)
    assert explained(finished, tmp_path/'album', tmp_path/'figures', capsys)[0] == 0 and len(list((tmp_path/'figures').iterdir())) == 2     # the same names again

@hard('names')
def test_a_long_name_alone(finished, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture(tmp_path/'album'/('b'*250 + '.png'))
    assert explain_main([f'album/{"b"*250}.png', '--run', str(finished)]) == 0
    assert len([p for p in tmp_path.iterdir() if p.name.endswith('-gradcam.png')]) == 1

CLASHES = [
    ['a.png', 'a.jpg', 'a.png.png'],
    ['A.png', 'a.png'],
    ['A.png', 'a.jpg', 'a.png'],
    ['a.png', 'a.png.png', 'a.png.png.png'],
    [unicodedata.normalize(form, 'é') + '.png' for form in ('NFC', 'NFD')],
    ['x'*245 + f'{i}.png' for i in range(5)],
    ['ß.png', 'ss.png', 'SS.png'],
    ['a-gradcam.png', 'a.png'],
]

@hard('names')
@pytest.mark.parametrize('names', CLASHES, ids=[names[0][:9] for names in CLASHES])
def test_no_two_figures_have_one_name(names):
    "Also where capitals, or the two ways to write an accent, are no difference."
    made = _figure_names([Path(name) for name in names])
    alike = {unicodedata.normalize('NFC', name).casefold() for name in made}
    assert len(alike) == len(names) and all(len(os.fsencode(name)) <= 250 for name in made)
    assert made == list(reversed(_figure_names([Path(name) for name in reversed(names)])))           # whatever the order

@hard('names')
def test_figures_of_names_that_clash(finished, tmp_path, capsys):
    for i, name in enumerate(('a.png', 'a.jpg', 'a.png.png', 'A.png')): picture(tmp_path/'album'/name, 20*i)
    shown = len(list((tmp_path/'album').iterdir()))                                 # 3 where capitals are no difference
    code = explain_main([str(tmp_path/'album'), '--run', str(finished), '--out', str(tmp_path/'figures'), '--json'])
    answer = json.loads(capsys.readouterr().out)
    assert code == 0 and len({row['figure'].casefold() for row in answer['pictures']}) == shown == len(list((tmp_path/'figures').iterdir()))
