"Bad input: one sentence, exit code 2, and nothing lost or left behind."
import hashlib, json, shutil, subprocess, sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cifar_resnet.cli import explain_main, main
from cifar_resnet.data import FOLDER
from cifar_resnet.recipe import CHOICES, either
from cifar_resnet.runs import only_one

TINY = '--dataset shapes10 --width 8 --epochs 1 --limit 100'.split()


def contents(folder): return {p.relative_to(folder): hashlib.sha256(p.read_bytes()).hexdigest() for p in Path(folder).rglob('*') if p.is_file()}


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp('run')/'a run with blanks – ü'
    assert main([*TINY, '--out', str(out)]) == 0
    return out


@pytest.mark.parametrize('argv, said', [
    ('--dataset mnist', f"no dataset 'mnist': choose {either(CHOICES['dataset'])}"),
    ('--recipe fastest', "no recipe 'fastest': choose strict"),
    ('--norm btach', 'choose layer, batch'),
    ('--norm group32 --width 16 --dataset shapes10', 'choose a larger width'),
    ('--device gpu', "device 'gpu' cannot be used"),
    ('--device cuda:99', 'cannot be used'),
    ('--strides 1,2', 'four numbers'),
    ('--strides 1,2,2,x', 'four numbers'),
    ('--strides 1,2,2,3', 'each 1 or 2'),
    ('--epochs 0', 'epochs must be positive'),
    ('--epochs -3', 'epochs must be positive'),
    ('--width 0', 'width must be positive'),
    ('--batch_size 0', 'batch_size must be positive'),
    ('--lr nan', 'lr must be a number'),
    ('--lr -1', 'lr must be positive'),
    ('--weight_decay inf', 'weight_decay must be a number'),
    ('--plateau_factor 1', 'must be below 1'),
    ('--seed -1', 'seed must be at least 0'),
    ('--variant upside_down', 'choose clean, distractors'),
    ('--dataset shapes10 --limit 1801', 'limit 1,801 is larger than the data: there are 1,800'),
    ('--limit 0', 'limit must be positive'),
    ('--resume', 'no run to resume'),
    ('--dataset shapes10 --save_every_s -5', 'save_every_s must'),
    ('--dataset shapes10 --workers -1', 'workers must'),
    ('--width 100000', 'width must be at most'),
    ('--batch_size 1000000000000', 'batch_size must be at most'),
    ('--device meta', "device 'meta' cannot be used"),
])
def test_bad_flags(argv, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('CIFAR10_DIR', '/dev/null')         # a flag that were accepted would fail here, not train for hours
    assert main(argv.split()) == 2
    out, err = capsys.readouterr()
    assert said in err and err.count('\n') == 1 and not out
    assert not list(tmp_path.rglob('*'))


@pytest.mark.parametrize('argv', ['--epochs ten', '--lr fast', '--bogus 1', '--limit 1.5', '--lim 5'])
def test_flags_that_do_not_parse(argv, capsys):
    with pytest.raises(SystemExit) as stop: main(argv.split())
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.count('\n') == 1 and '--help lists the flags' in err


def test_unwritable_out(tmp_path, capsys):
    (tmp_path/'file').write_text('x')
    assert main([*TINY, '--out', str(tmp_path/'file'/'run')]) == 2
    assert 'choose another --out' in capsys.readouterr().err
    assert main([*TINY, '--out', str(tmp_path/'file')]) == 2
    assert 'holds something else' in capsys.readouterr().err
    assert (tmp_path/'file').read_text() == 'x'


def test_read_only_out(tmp_path, capsys, monkeypatch):
    def denied(*args, **kw): raise PermissionError(13, 'Permission denied', str(tmp_path))
    monkeypatch.setattr(Path, 'mkdir', denied)
    assert main([*TINY, '--out', str(tmp_path/'run')]) == 2
    assert 'cannot be written (Permission denied): choose another --out' in capsys.readouterr().err


def test_another_recipes_run_is_not_touched(finished, capsys):
    before = contents(finished)
    assert main([*TINY, '--out', str(finished), '--norm', 'batch']) == 2
    assert 'holds a run with norm layer, not batch' in capsys.readouterr().err
    assert main(['--out', str(finished)]) == 2
    assert 'holds a run with dataset shapes10, not cifar10' in capsys.readouterr().err
    assert main(['--out', str(finished), '--resume', '--epochs', '7']) == 2
    assert 'with epochs 1, not 7' in capsys.readouterr().err
    assert contents(finished) == before


@pytest.mark.parametrize('name, data, said', [
    ('run.json', b'', 'run.json is damaged'), ('run.json', b'[]', 'run.json is damaged'), ('run.json', b'{"recipe": null, "finished": true}', 'run.json is damaged'),
    ('history.csv', b'epoch,lr\n1,2\n', 'history.csv is not the file that the run wrote'), ('weights.safetensors', b'garbage', 'weights.safetensors is not the file')])
def test_a_damaged_run(name, data, said, finished, tmp_path, capsys):
    run = tmp_path/'run'
    shutil.copytree(finished, run)
    (run/name).write_bytes(data)
    for command in (lambda: main([*TINY, '--out', str(run)]), lambda: explain_main([str(finished/'curves.png'), '--run', str(run), '--out', str(tmp_path/'x.png')])):
        assert command() == 2
        err = capsys.readouterr().err
        assert said in err and err.count('\n') == 1
    assert (run/name).read_bytes() == data


def test_all_checkpoints_damaged_or_of_another_recipe(finished, tmp_path, capsys):
    run = tmp_path/'run'
    shutil.copytree(finished, run)
    about = json.loads((run/'run.json').read_text())
    (run/'run.json').write_text(json.dumps({**about, 'finished': False, 'recipe': {**about['recipe'], 'seed': 5}}))
    assert main(['--out', str(run), '--resume']) == 2
    assert 'belongs to another recipe than its run.json' in capsys.readouterr().err
    (run/'run.json').write_text(json.dumps({**about, 'finished': False}))
    for checkpoint in (run/'checkpoints').glob('*.pt'): checkpoint.write_bytes(b'damaged')
    assert main(['--out', str(run), '--resume']) == 2
    err = capsys.readouterr().err
    assert 'no usable checkpoint' in err and 'to start anew' in err and err.count('\n') == 1


def test_a_second_process_is_kept_out(finished, tmp_path, capsys):
    run = tmp_path/'run'
    shutil.copytree(finished, run)
    about = json.loads((run/'run.json').read_text())
    (run/'run.json').write_text(json.dumps({**about, 'finished': False}))
    with only_one(run/'checkpoints'):
        assert main(['--out', str(run), '--resume']) == 2
        assert 'another process is at work' in capsys.readouterr().err
    assert main(['--out', str(run), '--resume']) == 0
    assert json.loads((run/'run.json').read_text())['resumed_at'] == [1.]


def test_explain_does_not_write_over_its_picture(finished, tmp_path, capsys):
    picture = tmp_path/'picture.png'
    shutil.copyfile(finished/'curves.png', picture)
    before = picture.read_bytes()
    assert explain_main([str(picture), '--run', str(finished), '--out', str(picture)]) == 2
    assert 'choose another --out' in capsys.readouterr().err and picture.read_bytes() == before


def test_a_finished_run_is_only_reported(finished, capsys):
    before = contents(finished)
    assert main([*TINY, '--out', str(finished)]) == 0
    assert 'test accuracy' in capsys.readouterr().out
    assert main(['--out', str(finished), '--resume']) == 0
    assert contents(finished) == before


def test_data_folder_missing_or_damaged(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('CIFAR10_MIRRORS', 'https://127.0.0.1:9/nothing-here.tar.gz')
    assert main(['--data_dir', str(tmp_path), '--out', str(tmp_path/'run')]) == 2
    err = capsys.readouterr().err
    assert 'could not be fetched (127.0.0.1:9: ' in err and 'name another mirror' in err and err.count('\n') == 1
    (tmp_path/FOLDER).mkdir()
    assert main(['--data_dir', str(tmp_path), '--out', str(tmp_path/'run')]) == 2
    assert 'data_batch_1 is missing: expected 31,035,704 bytes' in capsys.readouterr().err
    (tmp_path/FOLDER/'data_batch_1').write_bytes(b'x'*31_035_704)
    assert main(['--data_dir', str(tmp_path), '--out', str(tmp_path/'run')]) == 2
    assert 'data_batch_1 is damaged' in capsys.readouterr().err
    assert (tmp_path/FOLDER/'data_batch_1').stat().st_size == 31_035_704 and not (tmp_path/'run').exists()


@pytest.mark.parametrize('name, data, said', [
    ('text.png', b'not a picture', 'cannot be read as a picture'), ('empty.jpg', b'', 'cannot be read as a picture'),
    ('cut.png', b'\x89PNG\r\n\x1a\n\0\0\0\rIHDR', 'cannot be read as a picture'), (None, None, 'there is no file')])
def test_pictures_that_are_none(name, data, said, finished, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name: (tmp_path/name).write_bytes(data)
    assert explain_main([name or 'gone.png', '--run', str(finished)]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count('\n') == 1
    assert {p.name for p in tmp_path.iterdir()} == ({name} if name else set())


def test_explain_without_a_run(tmp_path, capsys, finished):
    assert explain_main([str(finished/'curves.png'), '--run', str(tmp_path)]) == 2
    assert 'holds no finished run' in capsys.readouterr().err


def test_explain_a_picture(finished, tmp_path, capsys):
    assert explain_main([str(finished/'curves.png'), '--run', str(finished), '--out', str(tmp_path/'where.png')]) == 0
    out = capsys.readouterr().out
    assert out.count('%') == 3 and (tmp_path/'where.png').stat().st_size > 1000


def test_explain_as_json(finished, tmp_path, capsys):
    assert explain_main([str(finished/'curves.png'), '--run', str(finished), '--out', str(tmp_path/'where.png'), '--json', '--top', '2']) == 0
    answer = json.loads(capsys.readouterr().out)
    (row,) = answer['pictures']
    assert row['figure'] == str(tmp_path/'where.png') and len(row['classes']) == 2
    assert set(row['classes'][0]) == {'class', 'confidence', 'logit', 'evidence', 'positive', 'map'}
    assert np.array(row['classes'][0]['map']).shape == (4, 4)


def pictures_of_every_kind(folder):
    "The same scene in many modes, formats and sizes, and turned by EXIF."
    wide = Image.fromarray((np.indices((90, 160)).sum(0)[...,None]*[1,.5,.2]).astype(np.uint8))
    folder.mkdir()
    for mode in ('RGB', 'L', 'P', 'RGBA', 'LA', '1', 'I;16', 'CMYK'):
        picture = Image.fromarray(np.arange(0, 4*90*160, 4, dtype=np.uint16).reshape(90, 160)) if mode == 'I;16' else wide.convert(mode)
        picture.save(folder/f'{mode.replace(";", "")}.{"jpg" if mode == "CMYK" else "png"}')
    exif = Image.Exif(); exif[0x0112] = 6
    wide.rotate(90, expand=True).save(folder/'turned.jpg', exif=exif, quality=95)
    wide.save(folder/'plain.webp'); wide.save(folder/'RGB.jpg'); wide.resize((5, 3)).save(folder/'tiny.gif'); wide.resize((3000, 2000)).save(folder/'large.jpg')
    (folder/'notes.txt').write_text('no picture, by its ending'); (folder/'inside').mkdir()


def test_explain_a_folder(finished, tmp_path, capsys):
    pictures_of_every_kind(tmp_path/'album')
    assert explain_main([str(tmp_path/'album'), '--run', str(finished), '--out', str(tmp_path/'figures'), '--json']) == 0
    answer = json.loads(capsys.readouterr().out)
    figures = {Path(row['figure']).name for row in answer['pictures']}
    assert len(figures) == len(answer['pictures']) == 13 and figures == {p.name for p in (tmp_path/'figures').iterdir()}
    assert {'RGB.png-gradcam.png', 'RGB.jpg-gradcam.png', 'turned-gradcam.png'} <= figures
    seen = {Path(row['picture']).name: np.array(row['classes'][0]['map']) for row in answer['pictures']}
    assert np.abs(seen['turned.jpg'] - seen['RGB.png']).max() < .2*np.abs(seen['RGB.png']).max()          # upright, whatever the camera did


def test_a_folder_with_something_broken(finished, tmp_path, capsys):
    (tmp_path/'album').mkdir()
    shutil.copy(finished/'curves.png', tmp_path/'album')
    (tmp_path/'album'/'broken.png').write_text('not a picture')
    assert explain_main([str(tmp_path/'album'), '--run', str(finished), '--out', str(tmp_path/'figures')]) == 2
    said = capsys.readouterr()
    assert 'broken.png cannot be read as a picture' in said.err and '1 of 2 files could not be explained; the others were' in said.err
    assert said.out.count('%') == 3 and (tmp_path/'figures'/'curves-gradcam.png').exists()


@pytest.mark.parametrize('more, said', [([], 'holds no pictures'), (['--top', '11'], '1 to 10 classes, not 11'), (['--top', '0'], '1 to 10 classes, not 0'), (['--top', 'x'], "invalid int value: 'x'")])
def test_explain_refuses(finished, tmp_path, capsys, more, said):
    picture = finished/'curves.png' if more else tmp_path
    try: code = explain_main([str(picture), '--run', str(finished), '--out', str(tmp_path/'x.png'), *more])
    except SystemExit as e: code = e.code
    err = capsys.readouterr().err
    assert code == 2 and said in err and err.count('\n') == 1 and not list(tmp_path.iterdir())


def test_the_installed_commands():
    for command in ('cifar_resnet', 'cifar_explain'):
        done = subprocess.run([Path(sys.executable).parent/command, '--help'], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 and '--out' in done.stdout, done.stderr
    done = subprocess.run([Path(sys.executable).parent/'cifar_resnet', '--version'], capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith('cifar_resnet ')


def test_a_damaged_run_that_lost_its_checkpoints(finished, tmp_path):
    from safetensors.torch import load_file, save_file
    run = shutil.copytree(finished, tmp_path/'run')
    about = json.loads((run/'run.json').read_text())
    (run/'run.json').write_text(json.dumps({**about, 'finished': False}))
    for checkpoint in (run/'checkpoints').glob('*.pt'): checkpoint.unlink()
    save_file({k: v if 'labels' in k else -v for k, v in load_file(run/'logits.safetensors').items()}, run/'logits.safetensors')
    assert main(['--out', str(run), '--resume']) == 0
    assert json.loads((run/'run.json').read_text())['test_loss'] == about['test_loss']


LIGHT = '''
import resource, sys
from cifar_resnet.cli import {command}
try: {command}({argv!r})
except SystemExit as e: code = e.code
used = resource.getrusage(resource.RUSAGE_SELF)                                 # its memory is inherited from whoever started it:
held = next(int(line.split()[1])/1024 for line in open('/proc/self/status') if line.startswith('VmHWM'))
heavy = [m for m in ('torch', 'numpy', 'scipy', 'albumentations', 'matplotlib', 'PIL', 'ipywidgets') if m in sys.modules]
print(code, *heavy, used.ru_utime + used.ru_stime, held, file=sys.stderr)
'''

@pytest.mark.parametrize('argv', [['--help'], ['--no_such_flag']])
@pytest.mark.parametrize('command', ['main', 'sweep_main', 'explain_main', 'bench_main', 'app_main'])
@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='memory is read from /proc')
def test_help_and_mistyped_flags_cost_nothing(command, argv):
    "Without PyTorch, in less than half a second of processor time, below 60 MB."
    done = subprocess.run([sys.executable, '-c', LIGHT.format(command=command, argv=argv)], capture_output=True, text=True)
    code, seconds, megabytes = done.stderr.strip().splitlines()[-1].split()          # anything heavy would be one word more
    assert int(code) == (0 if argv == ['--help'] else 2) and float(seconds) < .5 and float(megabytes) < 60


def test_every_command_is_installed_as_it_is_here():
    from configparser import ConfigParser
    config = ConfigParser(delimiters=['='])
    config.read(Path(__file__).parents[2]/'settings.ini', encoding='utf-8')
    scripts = dict(line.split('=') for line in config['DEFAULT']['console_scripts'].split())
    assert set(scripts) == {f'cifar_{name}' for name in ('resnet', 'sweep', 'explain', 'bench', 'app')}
    for target in scripts.values():
        module, function = target.split(':')
        assert module == 'cifar_resnet.cli' and callable(getattr(__import__(module, fromlist=[function]), function))


def test_no_norm_has_no_last_gain(tmp_path, capsys):
    assert main(['--norm', 'none', '--last_gain', '0', '--out', str(tmp_path/'run')]) == 2
    said = capsys.readouterr().err
    assert 'norm none has no gain that last_gain could set' in said and len(said.splitlines()) == 1


def test_another_seed_is_another_run(finished, capsys):
    with_seed = lambda seed: main([*TINY, '--seed', seed, '--out', str(finished)])
    assert with_seed('0') == 0 and with_seed('1') == 2
    assert 'holds a run with seed 0, not 1: leave --seed out' in capsys.readouterr().err
