"""Would a test notice? Every mutant below is one mistake that a person could make in the package; the tests that pass without it must fail with it.

    python nbs/experiments/mutants.py                      # all mutants: one line each, and how many were killed
    python nbs/experiments/mutants.py --only 06 08.3       # those of a room, or single ones
    python nbs/experiments/mutants.py --jobs 2 --publish   # two at a time; and write nbs/results/mutants.json

A mutant lives in a copy of the repository in a temporary folder: a text is replaced in the room's notebook and in the module made from it, then the room's
checks run one after the other until one fails (or hangs): that one killed it. First, as a control, all these checks must pass in a copy without a mutant.
Exit code 1 if the control does not pass, or if fewer than 90% are killed.
"""
import argparse, json, multiprocessing, os, shlex, shutil, signal, sys, tempfile, time, types
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COPIED = 'nbs cifar_resnet settings.ini setup.py README.md'.split()
TIMEOUT = 120      # seconds a check may take, or three times as long as it took without a mutant
GOAL = .9

# What is asked about a mutant of each room: notebooks, and arguments of pytest (in nbs/tests). First the room's own notebook, then the tests of the room,
# then whoever uses it.
CHECKS = {
    '00_core': ['00_core.ipynb', 'test_core.py', 'test_strangers_models.py -k picture', 'test_strangers_figures.py', 'test_evaluate.py', '10_gradcam.ipynb'],
    '01_plots': ['01_plots.ipynb', 'test_plots.py', 'test_strangers_figures.py', 'test_figures.py'],
    '02_fetch': ['02_fetch.ipynb', 'test_fetch.py', 'test_first_use.py', 'test_interrupts.py -k "fork or loaders"', 'test_hostile.py -k "test_archives or batches"'],
    '02a_pictures': ['02a_pictures.ipynb', 'test_strangers_pictures.py', 'test_hostile.py -k pictures'],
    '03_data': ['03_data.ipynb', 'test_data.py', 'test_hostile.py -k "batch or pictures or arrays or notes"', 'test_strangers_data.py', '04_augment.ipynb'],
    '04_augment': ['04_augment.ipynb', 'test_augment.py', 'test_train.py', 'test_resume.py -k "albumentations or need"'],
    '05_model': ['05_model.ipynb', 'test_threads.py -k of_pytorch', 'test_model.py', 'test_shared.py -k row_norm', '10_gradcam.ipynb', 'test_train.py'],
    '06_evaluate': ['06_evaluate.ipynb', 'test_evaluate.py', 'test_identities.py -k interval', 'test_figures.py', 'test_resume.py -k "norms or need"'],
    '07_runs': ['07_runs.ipynb', 'test_earlier.py', 'test_faults.py -k "errors_of_the or lying or pickle or short or flips or hash or remains or malicious or no_lock"',
                'test_resume.py -k signal', 'test_hostile.py -k "damaged_runs or new_checkpoint"', 'test_forged.py', '12_job.ipynb'],
    '08_recipe': ['08_recipe.ipynb', 'test_recipe.py', 'test_strangers_data.py -k "recipe or usual or name"', 'test_earlier.py', '12_job.ipynb'],
    '09_train': ['09_train.ipynb', 'test_train.py', 'test_strangers_data.py -k other_data', 'test_resume.py -k "need or scattered or SIGTERM"', 'test_hostile.py -k "test_checkpoints and without"',
                 'test_earlier.py', 'test_shared.py -k "engines or smaller"', 'test_resume.py -k "other_recipes or budget or changed_line"', '12_job.ipynb'],
    '09a_layers': ['test_strangers_models.py', 'test_gradcam.py', '09a_layers.ipynb'],
    '10_gradcam': ['test_strangers_models.py', 'test_gradcam.py', '10_gradcam.ipynb', 'test_identities.py', '11_faithful.ipynb'],
    '11_faithful': ['11_faithful.ipynb', 'test_faithful.py', 'test_strangers_figures.py', 'test_identities.py'],
    '12_job': ['12_job.ipynb', 'test_figures.py', 'test_cli.py -k "damaged or finished or process or recipe"', 'test_faults.py -k "reads or guard or depend or before_the_first"',
               'test_forged.py', 'test_every_write.py -k "not sweep and not moment"', 'test_hostile.py -k "places or unfinished"', '17_cli.ipynb', 'test_sweep.py -k "asked or views or notes"', 'test_strangers_data.py -k "another or ones_own or gone_on"', 'test_earlier.py'],
    '13_scale': ['13_scale.ipynb', 'test_executors.py -k "not pool and not engine"', 'test_forged.py -k "sweep or rows"', 'test_sweep.py -k "not pieces"', 'test_interrupts.py', 'test_shared.py -k two_processes', 'test_shared.py -k refused', '17_cli.ipynb', 'test_earlier.py'],
    '14_explore': ['14_explore.ipynb', 'test_explore.py', 'test_strangers_data.py -k "explorers or another or ones_own or classes or large"'],
    '15_stepper': ['15_stepper.ipynb', 'test_stepper.py'],
    '16_benchmarks': ['16_benchmarks.ipynb', 'test_benchmarks.py'],
    '17_cli': ['17_cli.ipynb', 'test_cli.py', 'test_imports.py'],
}

# room -> (what is wrong, the text as it is, the text as it is then). The text is in the room's notebook and in its module exactly once.
MUTANTS = {
    '00_core': [
        ('a look with dropout', 'model.eval()', 'model.train()'),
        ('a look leaves the model in eval mode', 'if m.training != mode: m.train(mode)', 'pass'),
        ('a look puts every module into train mode', 'if m.training != mode: m.train(mode)', 'm.train()'),
        ('modules are not told their mode', 'if m.training != mode: m.train(mode)', 'm.training = mode'),
        ('a module in two places has the mode of the last', 'model.named_modules(remove_duplicate=False)', 'model.named_modules()'),
        ('bfloat16 in every network on a CPU', 'width >= 16 and computes', 'computes'),
        ('bfloat16 where it is emulated', "return 'bfloat16' if width >= 16 and computes(device, 'bfloat16') else 'float32'", "return 'bfloat16' if width >= 16 else 'float32'"),
        ('emulation is not spoken of', 'if not computes(device, word):', 'if False:'),
        ('any word is a precision', 'if word not in PRECISIONS.values():', 'if False:'),
        ('after an error the model stays in eval mode', '    try: yield\n    finally:\n        for m, mode in modes:', '    yield\n    if True:\n        for m, mode in modes:'),
        ('of the key only the first word counts', 'json.dumps([purpose, *key], ', 'json.dumps([purpose, *key[:1]], '),
        ('floats of any size are pictures', 'if not 0 <= low <= high <= most:', 'if False:'),
        ('either of two axes: the last', 'elif found.shape[2] in (1, 3, 4) and found.shape[0] in (1, 3):', 'elif False:'),
        ('what is transparent is black', 'found[...,:3]*alpha + 255*(1 - alpha)', 'found[...,:3]*alpha'),
    ],
    '01_plots': [
        ('charts in full colour', '    fig.few_colours = True\n', ''),
        ('pictures with a palette', 'few_colours = False', 'few_colours = True'),
        ('classes in the order of rows', "np.argsort(values, kind='stable')", 'range(len(rows))'),
        ('whiskers from 0', 'ax.hlines(range(len(rows)), low, high', 'ax.hlines(range(len(rows)), 0, high'),
        ('bins without images have a point', 'bins[bins[:,0] > 0, 1:].T', 'bins[:,1:].T'),
        ('reliability: confidence and accuracy exchanged', 'conf, right = bins', 'right, conf = bins'),
        ('reliability: after for before', "'before', *before,", "'before', *after,"),
        ('a table says 1 for True', 'if type(value) is int:', 'if isinstance(value, int):'),
    ],
    '02_fetch': [
        ('a file that is there is taken without its hash', 'return path.exists() and file_hash(path) == sha256', 'return path.exists()'),
        ('a forked child holds the locks of its parent', 'for f in [*_HELD]: f.close()', 'pass'),
        ('a mirror that drips is waited for', 'if got < LEAST*timeout:', 'if not got:'),
        ("another user's part is gone on with", 'and found.st_uid == user', ''),
        ('whoever waited fetches again', 'if _is_there(path, sha256): return path               # another process', 'if False: return path               # another process'),
        ('a download is taken whatever its hash', '(got := file_hash(part)) != sha256', '(got := file_hash(part)) is None'),
        ('a reply with another range is taken', ".startswith(f'bytes {have}-')", ".startswith('bytes ')"),
        ('a whole reply is appended to the part that is there', "'ab' if goes_on else 'wb'", "'ab'"),
        ('a wrong part is kept for the next attempt', 'part.unlink(missing_ok=True)\n            if not goes_on', 'if not goes_on'),
        ('a redirect leads to plain http', '_secure(newurl)', 'newurl'),
        ('any host that begins with localhost is this machine', 'parts.hostname in THIS_MACHINE', 'parts.hostname.startswith(THIS_MACHINE)'),
        ('links in an archive pass', 'not (m.isreg() or m.isdir())', 'm.isdev()'),
        ('.. is looked for at the start of a name only', "'..' in PurePosixPath(name).parts", "name.startswith('..')"),
        ('the second member of a name wins', 'if name in members: raise', 'if False: raise'),
        ("a member's MD5 is not compared", 'hashlib.md5(data).hexdigest() != md5', 'len(data) != size'),
    ],
    '02a_pictures': [
        ('a photo stays as the camera was held', 'ImageOps.exif_transpose(file)', 'file.copy()'),
    ],
    '03_data': [
        ('any folder is fetched into', 'if not found: return\n    if loose', 'return\n    if loose'),
        ('pictures of another version need not be the official ones', 'if set(known) != set(FINGERPRINTS.values()):', 'if False:'),
        ('an archive of whatever content', 'if (got := file_hash(packed)) != archive.sha256:', 'if False:'),
        ('a folder one level down is not looked for', 'near = _near(top, archive.folder)', 'near = _near(top, archive.folder, 0)'),
        ('a class that train lacks', 'if unknown := [c for c in _classes_in(folder) if c not in classes]:', 'if False:'),
        ('two folders for one', 'if data_dir and Path(told).name != told and home(told).resolve() != path.resolve():', 'if False:'),
        ('nothing is held out', 'if share and not len(valid_idx):', 'if False:'),
        ('mean and std of red for all three channels', 'images[...,c].ravel()', 'images[...,0].ravel()'),
        ('the variance for the standard deviation', 'np.sqrt(counts @ value**2 / counts.sum(1) - mean**2).tolist()', '(counts @ value**2 / counts.sum(1) - mean**2).tolist()'),
        ('the held-out images are trained on, too', 'train_idx = np.setdiff1d(np.arange(len(labels)), valid_idx)', 'train_idx = np.arange(len(labels))'),
        ('every class is shuffled alike', "rng('split', c)", "rng('split', 0)"),
        ('CIFAR-10 pictures lie on their side', 'reshape(-1,3,32,32).transpose(0,2,3,1)', 'reshape(-1,3,32,32).transpose(0,3,2,1)'),
        ('the test batch is trained on, too', '    return _joined(train), test\n\ndef _made', '    return _joined([*train, test]), test\n\ndef _made'),
        ('of a batch file only the size is compared', " or file_hash(path, 'md5') != md5", ''),
        ('a pickle may ask for anything of NumPy', "== 'numpy' and name in self.allowed: return self.allowed[name]", "== 'numpy': return super().find_class(module, name)"),
        ('a fingerprint of the pixels only', "self.images.tobytes() + self.labels.astype('<i8').tobytes()", 'self.images.tobytes()'),
        ('the training images of the twins are noted', "['columns'].index('test')", "['columns'].index('train')"),
        ('notes on images that do not exist', 'type(v) is int and 0 <= v < below', 'type(v) is int'),
        ('notes: a label may be doubted twice', 'if len(set(doubtful)) < len(doubtful): raise', 'if False: raise'),
        ('notes are needed', 'if path is None: return {}', ''),
        ('notes: a pipe is waited for', "if not path.is_file(): raise ValueError('not a file')", ''),
        ('what is trained on is called held out', 'split(train.labels, limit=limit)[1]', 'split(train.labels, limit=limit)[0]'),
        ('a data set that there is not is looked up', "not dataset.startswith('folder:') and dataset not in DATASETS:", 'False:'),
    ],
    '04_augment': [
        ('the draws are the same in every epoch', "rng('augment', seed, epoch)", "rng('augment', seed)"),
        ('crops at eight of nine places', '*[2*padding + 1]*2', '*[2*padding]*2'),
        ('padding is always 4', 'F.pad(x, (padding,)*4)', 'F.pad(x, (4,)*4)'),
        ('crop by (x,y) instead of (y,x)', 'y, x = draw[:,:2].long().T', 'x, y = draw[:,:2].long().T'),
        ('a hole of 17 pixels', '(at < hole)', '(at <= hole)'),
        ('the hole is not turned with the picture', 'rotate(cutout(crop(mirror(normalise(images, mean, std), draw), draw, padding), draw, hole), draw)', 'cutout(rotate(crop(mirror(normalise(images, mean, std), draw), draw, padding), draw), draw, hole)'),
        ('upside down for left and right', 'x.flip(3), x)', 'x.flip(2), x)'),
        ('alternating: the same way round in every epoch', ' ^ bool(epoch % 2)', ''),
        ('every process trains on the whole batch', 'chosen = (i[share] for i in', 'chosen = (i for i in'),
        ('turned the other way', '[cos, -sin, zero, sin, cos, zero]', '[cos, sin, zero, -sin, cos, zero]'),
        ('the grid of the rotation reaches to the corners', 'F.affine_grid(theta, x.shape, align_corners=False)', 'F.affine_grid(theta, x.shape, align_corners=True)'),
        ('height and width exchanged in normalise', '.permute(0,3,1,2)', '.permute(0,3,2,1)'),
        ('a draw belongs to a place in the batch, not to an image', 'augment(images[i], table[i], mean, std)', 'augment(images[i], table[:len(i)], mean, std)'),
        ('labels in another order than images', 'augment(images[i], table[i], mean, std), labels[i])', 'augment(images[i], table[i], mean, std), labels[i.sort().values])'),
        ('the table forgets the mirror', 'flips(n, seed, epoch, flip)])', 'flips(n, seed, epoch)])'),
        ('no mirror images by albumentations', "dict(flip=bool(data['draw'][5]))", 'dict(flip=False)'),
        ('a last batch that is smaller is left out', 'for i in order.split(bs)]', 'for i in order.split(bs) if len(i) == bs]'),
    ],
    '05_model': [
        ('biases of another size than PyTorch draws', 'm.weight[0].numel()**-.5', 'm.weight.numel()**-.5'),
        ('one mean for all filters', 'w.mean((1,2,3), keepdim=True)', 'w.mean()'),
        ('a mean for each channel of a filter', 'w.mean((1,2,3), keepdim=True)', 'w.mean((2,3), keepdim=True)'),
        ('the head is centred, too', 'for m in model.modules() if isinstance(m, nn.Conv2d)]     # each', 'for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]     # each'),
        ('row norm: over the channels of each pixel', 'F.layer_norm(rows, rows.shape[1:], eps', 'F.layer_norm(rows, rows.shape[3:], eps'),
        ('row norm: no bias', 'torch.addcmul(self.bias.to(x.dtype), y, self.weight.to(x.dtype))', '(y*self.weight.to(x.dtype))'),
        ('row norm: 32 bits', 'with torch.autocast(x.device.type, enabled=False):', 'if True:'),
        ('by_rows does nothing', 'm.__class__ = RowNorm', 'pass'),
        ('LayerNorm over height and width only', 'super().__init__(1, channels)', 'super().__init__(channels, channels)'),
        ('a block without its shortcut', 'self.act(self.convs(x) + self.short(x))', 'self.act(self.convs(x))'),
        ('ReLU before the sum instead of after it', 'self.act(self.convs(x) + self.short(x))', 'self.act(self.convs(x)) + self.short(x)'),
        ('the maximum of the last map for its mean', 'self.features(x).mean((2,3))', 'self.features(x).amax((2,3))'),
        ('the stride in both convolutions of a block', 'nn.ReLU(), conv(c_out, c_out), norm(c_out)', 'nn.ReLU(), conv(c_out, c_out, 3, stride), norm(c_out)'),
        ('a loaded model is in train mode', '_read_model(weights_path(path)).float().eval()', '_read_model(weights_path(path)).float()'),
    ],
    '06_evaluate': [
        ('judged in what is around', ', in_float32(device), feeding(x):', ', feeding(x):'),
        ('accuracy divided by the number of classes', '(logits.argmax(1) == labels).sum().item()/len(labels)', '(logits.argmax(1) == labels).sum().item()/logits.shape[1]'),
        ('another interval than Wilson\'s', "method='wilson'", "method='exact'"),
        ('the right ones among the misclassified', '(logits.argmax(1) != labels).nonzero()', '(logits.argmax(1) == labels).nonzero()'),
        ('the least sure mistakes first', 'argsort(descending=True,', 'argsort(descending=False,'),
        ('confusion matrix: rows are predictions', 'labels*C + logits.argmax(1)', 'logits.argmax(1)*C + labels'),
        ('no room for the classes that do not occur', 'np.bincount(cells, minlength=C*C)', 'np.bincount(cells)'),
        ('the temperature multiplies', 'logits.double()/math.exp(log_t)', 'logits.double()*math.exp(log_t)'),
        ('labels trusted without limit', ', label_smoothing=1/(len(labels)+2)', ''),
        ('probabilities divided by the temperature', '(as_logits(logits)/temperature).softmax(1)', 'as_logits(logits).softmax(1)/temperature'),
        ('every bin counts alike in the ECE', '.abs() * sums[0]).sum().item()/len(labels)', '.abs()).mean().item()'),
        ('predict with dropout', 'with evaluating(model), torch.inference_mode()', 'with torch.inference_mode()'),
        ('logits that can enter no graph', 'return logits.clone()', 'return logits'),
        ('views without mirror images', 'view.flip(-1)', 'view'),
        ('all views count alike', 'pair(x)/2 + pair(wide[...,2:,2:])/4 + pair(wide[...,:H,:W])/4', '(pair(x) + pair(wide[...,2:,2:]) + pair(wide[...,:H,:W]))/3'),
        ('precision for recall', '_measured(row[c], row.sum())', '_measured(row[c], counts[:,c].sum())'),
        ('a class without images has a row', ' if row.sum()]', ']'),
        ('right answers among the confused pairs', 'np.where(np.eye(len(counts), dtype=bool), 0, counts)', 'counts'),
        ('the share of the predicted class', 'wrong[t,p]/counts[t].sum()', 'wrong[t,p]/counts[:,p].sum()'),
        ('only the images to leave out', 'np.setdiff1d(np.arange(len(labels)), _indices(', 'np.intersect1d(np.arange(len(labels)), _indices('),
        ('an interval of single values, not of their mean', '*sd/math.sqrt(n)', '*sd'),
        ('intervals as if the sd were known', 't.ppf(.975, n-1)', 't.ppf(.975, 1e9)'),
        ('the sd of a whole population', 'np.std(values, ddof=1)', 'np.std(values)'),
    ],
    '07_runs': [
        ('an earlier run computed in 32 bits', "return 'float32' if word == 'None' else word", "return 'float32'"),
        ("an earlier run has today's names", 'if then in today: today[name] = today.pop(then)', 'pass'),
        ('a file is copied, not renamed, into its place', 'os.replace(part, path)\n', 'path.write_bytes(part.read_bytes()); part.unlink()\n'),
        ('a failed write leaves its part', 'with suppress(OSError): part.unlink(missing_ok=True)', 'pass'),
        ('what was written is not read back', 'if part.read_bytes() != data:', 'if not data:'),
        ('the hash of a checkpoint is not compared', 'hashlib.sha256(data).hexdigest() != read_file(noted).decode()', 'not read_file(noted)'),
        ('a checkpoint may run code', 'weights_only=True', 'weights_only=False'),
        ('one checkpoint is kept', 'keep:int=2', 'keep:int=1'),
        ('the oldest checkpoint is loaded', 'in reversed(_checkpoints(folder))', 'in _checkpoints(folder)'),
        ('going back in silence', 'if passed: warnings.warn(', 'if False: warnings.warn('),
        ('signal handlers are not put back', '    try: yield stop\n    finally: put_back()', '    yield stop'),
        ('SIGTERM is not waited for', 'return [signal.SIGINT, signal.SIGTERM] +', 'return [signal.SIGINT] +'),
        ('a lock on a file that was removed', 'if not is_still_there(f): raise', 'if False: raise'),
        ('a lock for many', 'fcntl.LOCK_EX', 'fcntl.LOCK_SH'),
        ('a changed run.json passes', "if about['finished'] and about['seal'] != seal(about)", "if about['finished'] and not about['seal']"),
        ('the seal covers no results', "if k != 'seal'}", 'if k in FIELDS}'),
        ('run.json may lack the hash of the data', 'data_sha256=str, ', ''),
        ('the history is not sealed', "'logits.safetensors', 'history.csv', 'split.npz'", "'logits.safetensors', 'split.npz'"),
        ('a changed file of a sealed run passes', 'if path.exists() and file_hash(path) not in right', 'if path.exists() and not digest'),
        ('NaN is a number in JSON', 'if not math.isfinite(number := float(word)):', 'if (number := float(word)) is None:'),
        ('a history may hold anything', "if row['epoch'] != n or not all(map(_may_be, row.values(), row)):", 'if False:'),
        ('the announced hash stays in a sealed run', "about = {k: v for k, v in about.items() if k != 'changing'}", 'about = {**about}'),
        ('history.csv with three digits', 'table.writerows(rows)', 'table.writerows([{k: round(v, 3) for k, v in row.items()} for row in rows])'),
    ],
    '08_recipe': [
        ("an earlier run means today's presets", 'recipe_from({**BEFORE, **told})', 'recipe_from(told)'),
        ('1 and 1.0 are two recipes', 'return field.type(value)', 'return value'),
        ('the seed is part of the hash of a recipe', " if k != 'seed' and", ' if'),
        ('groups that do not divide the channels', "if r.norm.startswith('group') and r.width % (groups := int(r.norm[5:])):", 'if False:'),
        ('instance norm of a last map of 2×2', "if r.norm == 'instance' and math.prod(r.strides) == 16:", 'if False:'),
        ('a gain of no norm', "if r.norm == 'none' and r.last_gain not in (None, 1):", 'if False:'),
    ],
    '09_train': [
        ('a recipe for other data', "if data.name not in ('', recipe.dataset):", 'if False:'),
        ('resumed without the optimiser', "'averaged', 'opt', 'plateau'", "'averaged', 'plateau'"),
        ('resumed without the history', "= state['history'], state['best'], state['epoch']", "= [], state['best'], state['epoch']"),
        ('resumed without the best weights', "= state['history'], state['best'], state['epoch']", "= state['history'], self.best, state['epoch']"),
        ('resumed without the losses of the epoch', "self.open_epoch(state['at'], state['losses'],", "self.open_epoch(state['at'], 0*state['losses'],"),
        ('resumed at the start of the epoch', 'permutation(n))[at*bs:]', 'permutation(n))'),
        ('resumed with other data', "if state['data_sha256'] != self.data_sha256:", "if not state['data_sha256']:"),
        ('the same order in every epoch', "rng('order', seed, self.epoch)", "rng('order', seed)"),
        ('the same augmentation in every epoch', 'draws(n, seed, self.epoch, ', 'draws(n, seed, 0, '),
        ('first weights are drawn from what all threads share', "draw_weights(model.to_empty(device='cpu'), generator)", "draw_weights(model.to_empty(device='cpu'), torch.default_generator)"),
        ('the same first weights for every seed', "torch_rng('init', r.seed)", "torch_rng('init', 0)"),
        ('no weight decay', ', weight_decay=r.weight_decay', ''),
        ('patience and cooldown exchanged', 'patience=r.plateau_patience,\n                                     threshold=r.plateau_threshold, cooldown=r.plateau_cooldown', 'patience=r.plateau_cooldown,\n                                     threshold=r.plateau_threshold, cooldown=r.plateau_patience'),
        ('the scheduler is told the training loss', 'self.plateau.step(valid_loss)', 'self.plateau.step(train_loss)'),
        ('the scheduler watches from the start', ' and train_loss < r.plateau_start*guess', ''),
        ('the best weights go on changing', 'v.detach().clone()', 'v.detach()'),
        ('of equal epochs the last is the best', "valid_loss < self.best['valid_loss']", "valid_loss <= self.best['valid_loss']"),
        ('a small last batch counts like a full one', 'sizes[-1] = n - bs*(len(sizes)-1)', 'n = bs*len(sizes)'),
        ('gradients add up from batch to batch', 'self.opt.zero_grad()\n', 'pass\n'),
        ('saved with weights that are no numbers', '    self.check_finite()\n    if self.saved_at is None', '    if self.saved_at is None'),
        ('a signal is obeyed without saving', 'if self.folder and (over or ', 'if self.folder and ('),
        ('the budget is not kept', ' or time.monotonic() > self.until', ''),
        ('resumed without the average', "'model', 'averaged', 'opt'", "'model', 'opt'"),
        ('the average is looked at, the last weights are kept', 'in self.averaged.state_dict().items()', 'in self.model.state_dict().items()'),
        ('the last weights are looked at, the average is kept', 'predict(self.averaged, self.valid_x', 'predict(self.model, self.valid_x'),
        ('the average stands still', 'if self.recipe.average: self.update_ema()', 'pass'),
        ('a smaller batch goes through what was made for full ones', 'return self.net if len(yb) == self.recipe.batch_size else self.model', 'return self.net'),
        ('no warm-up', 'if step < warmup_steps:', 'if False:'),
        ('the plateau lowers a rate that falls in a line', "return r.schedule == 'plateau' and self.epoch", 'return self.epoch'),
        ('a changed line falls as it was planned', 'self.slope or (warmup_steps, r.lr)', '(warmup_steps, r.lr)'),
        ('a plateau is changed that there is not', "if field.startswith('plateau_') and self.recipe.schedule != 'plateau':", 'if False:'),
        ('a rate changed by hand is forgotten by the line', "new if field == 'lr' else top)", 'top)'),
        ('filters are centred at the start only', "    if self.recipe.filters == 'zero_mean': centre_filters(self.model)\n", ''),
        ('a resumed run computes in what is usual here', 'precision=began, weights', 'precision=precision, weights'),
        ('another precision is taken in silence', "if asked not in ('auto', began) and", 'if False and'),
        ('a checkpoint does not say its precision', 'precision=self.precision, epoch', "precision='float32', epoch"),
        ('all is computed in 32 bits', 'with autocast(self.device, self.precision):', "with autocast(self.device, 'float32'):"),
        ('Muon forgets its momentum', 'self.muon.state[m] = self.state[p]', 'self.muon.state[m] = {}'),
        ('gradients are not cut', 'if self.recipe.clip: self.clip_gradient()', 'pass'),
        ('labels are not smoothed', ', label_smoothing=self.recipe.smoothing', ''),
        ('all recipes have Adam', 'OPTIMISERS[r.optimiser](', "OPTIMISERS['adam']("),
        ('all engines are the plain one', 'model = BACKENDS[name](model)', 'pass'),
        ('a change of the rate is not made', "if field in ('lr', 'weight_decay'):", "if field in ('weight_decay',):"),
        ('a change is not noted', 'self.edits.append(dict(step=step, field=field, old=old, new=new))', ''),
        ('a change is noted with the planned rate', "self.rate if field == 'lr' and past_warmup else", ''),
        ('mirror images change within an epoch', "if field == 'flip' and self.at:", 'if False:'),
        ('changes are forgotten by a resumed run', "for change in state['edits']: self.take_over(**change)", "self.edits = state['edits']"),
        ('the recipe in a checkpoint is the changed one', 'recipe=asdict(self.planned), edits', 'recipe=asdict(self.recipe), edits'),
    ],
    '09a_layers': [
        ('who watches leaves hooks', 'return model(x)\n    finally:\n        for h in handles: h.remove()', 'return model(x)\n    finally: pass'),
        ('a map of 1×1 is a map', 'shape if shape[1]*shape[2] > 1 else None', 'shape'),
        ('the first layer that is listened to, not the last', 'next((key for key in reversed(heard) if _has', 'next((key for key in heard if _has'),
        ('channels last are taken for channels first', 'for order in ((a, b, c), (c, a, b))}', 'for order in ((a, b, c),)}'),
        ('two readings of four axes: the first is taken', 'return _permuted(axis, *sure[0]) if len(sure) == 1 else None', 'return _permuted(axis, *sure[0]) if sure else None'),
        ('where changes are seen does not matter', 'if not found or any(apart > .4 and ahead < apart/3 for ahead, apart in found): return False', 'if not found: return False'),
        ('changes must be seen, or it is no map', 'if answer is None and _fits(model, trace, key, order)]', 'if False]'),
        ('a layer that grows is not looked at', 'if trace.grown is None: trace.grown = _grown(model, trace)', 'trace.grown = {}'),
        ('attention is a map', 'return all(shape[i] < grown[i] <= 3*shape[i] for i in (h, w)) and', 'return'),
        ('the class token is a place', 'if same.all(): return', 'return'),
        ('a table is one map for each image', 'if _differs(a, i, 1) > 10*_differs(a, i, 2): return i', 'return i'),
        ('a row of cells is a grid', ' or grown[tokens] - len(left_out) != 4*n)', ')'),
        ('any number of tokens fills a grid', 'if answer or (answer is None and known):', 'if True:'),
        ('rows and columns of tokens exchanged', '.transpose(1, 2).unflatten(2, grid)', '.transpose(1, 2).unflatten(2, grid).mT'),
        ('one cell that was spread is a map', 'read = key not in trace.flat and _reading', 'read = _reading'),
        ('the first run of a module, not the last', '(own, runs[-1])', '(own, runs[0])'),
        ('a layer that nobody listens to', 'return g is not None and bool(read(g).any())', 'return True'),
        ('values of an attention, not the block before', 'return found and _whole_of(found, heard, outs, score, x, model, trace)', 'return found'),
        ('the negative of one logit is the logit', 'torch.cat([-logit, logit], 1)', 'torch.cat([logit, logit], 1)'),
        ('a probability is a logit', 'found.reshape(B, 1) - .5*_is_probability(found, say)', 'found.reshape(B, 1)'),
        ('of a dict the first is taken', "if isinstance(returned, dict) and 'logits' in returned: return returned['logits']", 'if isinstance(returned, dict): return next(iter(returned.values()))'),
        ('a model is watched once and for all', 'if had == modules and kind in known', 'if kind in known'),
        ('noise is left in the model', 'one_at_a_time(model), evaluating(model), _as_it_was(model): return', 'one_at_a_time(model), evaluating(model): return'),
        ('a model is watched for each map', '_traces[model] = modules, {**(known if had == modules else {}), kind: found}', 'pass'),
    ],
    '10_gradcam': [
        ('weights of the channels by place, not their mean', 'gradcam=lambda grads: grads.mean((-2,-1), keepdim=True)', 'gradcam=lambda grads: grads'),
        ('HiResCAM averages, too', 'hirescam=lambda grads: grads,', 'hirescam=lambda grads: grads.mean((-2,-1), keepdim=True),'),
        ('ReLU before the channels are added', '(_weights_by(method)(grads)*acts).sum(1)', '(_weights_by(method)(grads)*acts).relu().sum(1)'),
        ('every image is asked about the classes of all', 'logits.gather(1, _targets(target, logits)[:,None]).sum()', 'logits[:, _targets(target, logits)].sum()'),
        ('without a target: the least likely class', 'return logits.detach().argmax(1)', 'return logits.detach().argmin(1)'),
        ('a ReLU in place overwrites what was tapped', 'replaced(out, a, seen[name].clone())', 'out'),
        ('hooks stay on the layers', 'yield seen\n    finally:\n        for h in handles: h.remove()', 'yield seen\n    finally: pass'),
        ('maps of a model that trains', 'with evaluating(model), tapped({name: modules[key[0]] for name, key in runs.items()})', 'with tapped({name: modules[key[0]] for name, key in runs.items()})'),
        ('does not work in inference mode', 'with torch.inference_mode(False), torch.no_grad(): yield seen', 'with torch.no_grad(): yield seen'),
        ('an empty map without a word', 'if relu and not every: _warn_if_empty(m)', ''),
        ('a layer before a norm without a word', 'for name, both in sums.items(): _warn_if_cancelled(name, *both.tolist())', ''),
        ('any head is taken for affine', 'if node.name() not in AFFINE or _may', 'if _may'),
        ('two ways to the layer are taken for one', 'if len(ways) != 1 or ways', 'if ways'),
        ('no head is taken for affine', 'if every and not others and _affine_between(logits, one)', 'if False'),
        ('the weights of all classes are those of the first', 'logits[i, first+i].sum()', 'logits[i, first].sum()'),
        ('only as many classes as images', 'for first in range(0, C, B):', 'for first in range(0, B, B):'),
        ('a branch of its own has no gradient', 'if torch.is_grad_enabled() and not a.requires_grad else a', 'if not seen else a'),
        ('the gradient that a model cuts is mended', 'if not seen: torch.set_grad_enabled(True)', 'torch.set_grad_enabled(True)'),
        ('views may mix images', ' or _may_mix_images(node, len(logits))', ''),
        ('computed in half precision under autocast', 'torch.enable_grad(), torch.autocast(images.device.type, enabled=False):', 'torch.enable_grad():'),
        ('contrast: the other way round', 'difference=p - q', 'difference=q - p'),
        ('contrast: the margin without the sign', 'margin=y_p - y_q)', 'margin=(y_p - y_q).abs())'),
        ('rows and columns of the centres exchanged', '_increasing(rows.numpy()), _increasing(columns.numpy())', '_increasing(columns.numpy()), _increasing(rows.numpy())'),
        ('centres: the middle of the floor, not of the peak', 'core = fields.cpu().double().square()', 'core = fields.cpu().double()'),
        ('tiles from corner to corner', '(np.arange(cells) + .5)*pixels/cells - .5', 'np.linspace(0, pixels-1, cells)'),
        ('a shared scale that is not shared', 'np.full(len(heat), heat.max())', 'heat.max((1,2))'),
        ('blue for, orange against', 'np.where(maps[...,None] > 0, FOR, AGAINST)', 'np.where(maps[...,None] > 0, AGAINST, FOR)'),
        ('of all classes at once the method is always gradcam', 'weights = _weights_by(method)(grads)', "weights = METHODS['gradcam'](grads)"),
        ('a spread cell without a word', 'elif acts[0,0].numel() > 1 and acts.any() and is_flat(acts):', 'elif False:'),
        ('NaN without a word', 'if bad := (~maps.isfinite()).flatten(1).any(1).nonzero()[:,0].tolist():', 'if bad := []:'),
        ('NaN spoils the common scale', 'maps.cpu().where(sound, 0)', 'maps.cpu()'),
        ('any run of a module will do', 'if a is None or asked not in (None, run): return', 'if a is None: return'),
        ('another forward of the same modules', 'if again and any(is_another(trace, runs[name], a) for name, a in seen.items()):', 'if False:'),
        ('a hook hears other threads', 'if threading.get_ident() != thread: return\n        run += 1', 'run += 1'),
        ('what a model keeps is cut off', '(a.detach().clone() if kept else a).requires_grad_()', 'a.detach().clone().requires_grad_()'),
        ('a matrix that mixes images', 'or ways[0][0] != LEFT.get(node.name(), ways[0][0])', ''),
        ('LayerCAM keeps what is negative', 'layercam=lambda grads: grads.relu())', 'layercam=lambda grads: grads)'),
        ('the sum of LayerCAM is evidence', "NOT_ADDITIVE = {'layercam'}", 'NOT_ADDITIVE = set()'),
    ],
    '11_faithful': [
        ('pointing: ties count in full', 'return (top & mask).sum((1,2))/top.sum((1,2))', 'return (top & mask).any(2).any(1).float()'),
        ('mass: evidence against counts, too', 'heat = heat.clamp_min(0).double()', 'heat = heat.abs().double()'),
        ('rank: one pixel too few', 'gather(1, (K-1).clamp_min(0)[:,None])', 'gather(1, (K-2).clamp_min(0)[:,None])'),
        ('rank: ties do not count', '+ (K - above.sum(1))*(tied & mask).sum(1)/tied.sum(1)', ''),
        ('IoU over the region only', '/(region | mask).sum((1,2))', '/region.sum((1,2))'),
        ('the centroid across and down', 'torch.stack([heat.sum(2) @ down, heat.sum(1) @ across], 1)', 'torch.stack([heat.sum(1) @ across, heat.sum(2) @ down], 1)'),
        ('the bias of the object, not of the map', '(centroid(heat) - centroid(mask.float()))', '(centroid(mask.float()) - centroid(heat))'),
        ('the oracle is finer than the map', 'oracle = on_grid(mask)', 'oracle = mask.float()'),
        ('cascade: the model itself forgets', 'model = deepcopy(model)\n    device', 'device'),
        ('cascade: nothing is forgotten', "if hasattr(module, 'reset_parameters'): module.reset_parameters()", 'pass'),
        ('correlation of values, not of ranks', 'rankdata(v.flatten(1).double().numpy(), axis=1)', 'v.flatten(1).double().numpy()'),
        ('the weakest are hidden first', 'argsort(dim=1, descending=True, stable=True)', 'argsort(dim=1, stable=True)'),
        ('insertion is deletion', 'shown = (rank < n*step/steps) == insert', 'shown = (rank < n*step/steps) == False'),
        ('the probability of the predicted class', '.gather(1, torch.from_numpy(labels)[:,None])[:,0]', '.amax(1)'),
        ('occlusion: a gain is a loss', 'torch.stack([before - _score(model, hidden, target)', 'torch.stack([_score(model, hidden, target) - before'),
        ('columns of patches for rows', 'hidden[:,:,i*h:(i+1)*h,j*w:(j+1)*w] =', 'hidden[:,:,j*h:(j+1)*h,i*w:(i+1)*w] ='),
        ('hidden patches turn black', 'images.mean((2,3), keepdim=True)\n            yield', '0\n            yield'),
        ('an empty map has no overlap', 'heat = heat.clamp_min(0)\n    region', 'region'),
        ('held norms are not held', '_normalised_by(norm, inputs[0], *known[norm])', 'out'),
        ('held norms stay held', '    try: yield\n    finally:\n        for h in handles: h.remove()', '    yield'),
        ('influence: the statistics are never held', 'held_norms(model, images) if hold else nullcontext()', 'nullcontext()'),
    ],
    '12_job': [
        ('a finished run on other pictures is taken for this one', 'if known not in (None, part.fingerprint()):', 'if False:'),
        ('a folder of the same name is not looked at', 'if drawn and data is None and _surely_of(about, asked, full, resume, data_dir):', 'if drawn:'),
        ('logits of a finished run change unannounced', "if about.get('finished'): write_json(", 'if False: write_json('),
        ('an announced change is taken for done', "trained and 'changing' not in about and", 'trained and'),
        ('figures of held-out images stay when the test set is read', "if about['finished']: _forget_shown(folder)", 'pass'),
        ('what was seen before the lock is used after it', 'if _standing(folder, full, asked, resume) != (about, begun):', 'if False:'),
        ('planted logits are sealed', "if part in stored and (why := _strange(folder, about, part, images(), stored)):", 'if False:'),
        ('logits of other weights are sealed', "return dict(weights=file_hash(folder/'weights.safetensors'), ", "return dict("),
        ('a changed run.json of an unfinished run is sealed', 'if not _same(about[name], known[name]):', 'if False:'),
        ('weights that are not those of the checkpoint are sealed', "alike = found.keys() == best.keys() and all(", 'alike = True or all('),
        ('what changed while the test set was read is sealed', "if about['finished']: check_files(read_about(folder), folder)", 'pass'),
        ('a report of another run is published', "if found['part'] != part or abs(found['accuracy'] - accuracy) > 1e-6:", 'if False:'),
        ('a released file lies there before it is measured', '(draft := Path(place)/path.name).write_bytes(', 'write_atomic(draft := path, '),
        ('run.json is published first', 'for name in reversed(PUBLISHED): write_atomic', 'for name in PUBLISHED: write_atomic'),
        ('what a death in the first write leaves is a stranger', "REMAINS = 'checkpoints', '.lock', 'run.json.part'", "REMAINS = 'checkpoints', '.lock'"),
        ('the data are called as the recipe calls them', 'data=t.data_name, data_sha256', 'data=t.recipe.dataset, data_sha256'),
        ('a run does not say its precision', 'precision=t.precision, **computed_by', "precision='float32', **computed_by"),
        ('flags that mean nothing are taken in silence', 'plateau = [k for k in asked if', 'plateau = [k for k in () if'),
        ('a long run says nothing', "if t.device.type != 'cpu' or left < LONG:", 'if True:'),
        ('the test images are the held-out ones, too', 'held_out(train, full.limit)', 'test.take(slice(full.limit))'),
        ('the test set opens before the weights are final', "if not (self._folder/'weights.safetensors').exists():", 'if False:'),
        ('the test set opens twice', 'if self.reads:', 'if False:'),
        ('test images are shown before they were read', 'if not self.reads: raise', 'if False: raise'),
        ('the last weights instead of the best', "t.averaged.load_state_dict(t.best['weights'])\n", '\n'),
        ('the test results are those of the held-out images', "logits, labels, tta = stored['test'], stored['test_labels'], ", 'logits, labels, tta = logits, labels, '),
        ('the temperature is fitted to the test set', 'temperature=fit_temperature(logits, labels)', "temperature=fit_temperature(stored.get('test', logits), stored.get('test_labels', labels))"),
        ('the right ones are counted as misclassified', "'misclassified': n - right", "'misclassified': right"),
        ('figures of held-out logits, under test images', "part, stored = 'test' if run.metrics['test_reads'] else 'held_out',", "part, stored = 'held_out',"),
        ('mistakes and their maps in different orders', 'plots.mistakes(shown, name(true)', 'plots.mistakes(shown[::-1], name(true)'),
        ('the maps of true and predicted class exchanged', 'instead=true, target=pred', 'instead=pred, target=true'),
        ('explain: maps of other classes than named', "'all', relu=False)[0, best]", "'all', relu=False)[0, :top]"),
        ("checkpoints of another recipe's run are taken", 'trainer.resume(folder, train, recipe=recipe, **how)', 'trainer.resume(folder, train, **how)'),
        ('run.json does not say where a run was resumed', "about = went_on(about, computed_by(t), t.epoch + t.at/len(t.losses))", "pass"),
        ('a finished run is finished again', "done = trained and 'changing' not in about and (about['test_reads'] or not read_test)", 'done = False'),
        ('logits of a lost run are kept for the new one', "for stale in ('logits.safetensors', 'weights.safetensors')", 'for stale in ()'),
        ('test images that nobody was to read are read', 'if read_test and not test.reads', 'if not test.reads'),
        ('the accuracy of the views is that of the plain images', 'accuracy(tta, labels)', 'accuracy(logits, labels)'),
        ('views are tested whatever the recipe', "views=about['recipe']['flip'] != 'none'", 'views=True'),
        ('the released accuracy is that of the run', 'test_accuracy=right/n, test_accuracy_ci95=wilson(right, n)))', "test_accuracy=m['test_accuracy'], test_accuracy_ci95=wilson(right, n)))"),
        ('ECE after the temperature is that before it', "ece_after=ece(m['temperature'])", 'ece_after=ece(1.)'),
        ('figures that are missing are not drawn', 'drawn = done and (not draw or not trainer.leads() or _is_shown(folder))', 'drawn = done'),
        ('room for an average that is not kept', '4 + (t.averaged is not t.model)', '5'),
        ('a folder with something else is written to', "any(p.name not in REMAINS for p in folder.iterdir())", 'False'),
        ('an unfinished run is gone on with unasked', "if not resume and not about['finished']:", 'if False:'),
        ('resumed where no run is', '        if resume:\n', '        if False:\n'),
        ('run.json names the changed recipe', 'recipe=asdict(t.planned), recipe_hash', 'recipe=asdict(t.recipe), recipe_hash'),
        ('changed weights are sealed anew', 'if trained: check_files(about, folder)', 'if trained: pass'),
        ('another seed is the same recipe', 'for k, v in asked.items() if saved[k] != v)', "for k, v in asked.items() if k != 'seed' and saved[k] != v)"),
        ('a file in the place of a run folder', 'not folder.is_dir() or ', ''),
    ],
    '13_scale': [
        ('a row may hold anything', 'try: _check_row(row)', 'try: pass'),
        ('a row need not say what its run says', "untested or not _as_in_folder(rows[key], out/f'{key[0]}-{key[1]}')", 'untested'),
        ('a process of a sweep does not hear that its parent is gone', 'with suppress(EOFError, OSError): parent.recv()', 'parent.recv()'),
        ('a sweep that is asked to stop begins further runs', 'goes_on = lambda: not stop.is_set() and', 'goes_on = lambda:'),
        ('equal runs are sure', 'spread(values, runs[0].get(images))', 'spread(values)'),
        ('a sweep takes any run that lies in its folder', 'if there: check_same_recipe(', 'if False: check_same_recipe('),
        ('a sweep mixes precisions in silence', 'if executor is None and (words := mixed(plan)): warnings.warn(words)', 'pass'),
        ('a sweep trains again what is finished', 'if key not in rows]', ']'),
        ('a sweep takes another recipe by an old name', "raise ValueError(f'{out} holds results of {key[0]!r} with another recipe", "print(f'{out} holds results of {key[0]!r} with another recipe"),
        ('a sweep opens the test set', 'dict(options, read_test=read_test)', 'options'),
        ('a run that failed counts as a run', "runs = [row for row in rows.values() if 'error' not in row]", 'runs = list(rows.values())'),
        ('a sweep goes on when time is up', "if (left := until - time.monotonic()) <= 0: raise KeyboardInterrupt('time is up')", 'left = max(1, until - time.monotonic())'),
        ('a run that another worker holds has failed', 'overtaken = isinstance(e, AtWork) or', 'overtaken ='),
        ('a worker gets a path that means another place there', 'home(out).absolute(), {name', 'home(out), {name'),
        ('a run that has waited for a worker has as much time as before', ' - max(0, time.time() - sent)', ''),
        ('an engine that loses a run says nothing', "return dict(name=key[0], seed=key[1], error=f'{why}: {again}') if why else row", "return None if why else row"),
        ('a sweep over workers mixes precisions in silence', 'if executor is not None and (words := mixed(done)): warnings.warn(words)', 'pass'),
        ('the means of unequal shares count alike', 'batch_loss(xb, yb)*self.loss_weight(yb)', 'batch_loss(xb, yb)'),
        ('a last batch that is too small to be shared', 'smallest = len(self.labels) % bs or bs', 'smallest = bs'),
    ],
    '14_explore': [
        ('other images than the run had', 'if not same:\n        raise ValueError(f\'these are not', 'if False:\n        raise ValueError(f\'these are not'),
        ('a button for each of ten thousand cells', 'matrix = ConfusionButtons if len(self.counts) <= MANY else ConfusionList', 'matrix = ConfusionButtons'),
        ('mistakes are what is right', '(self.logits.argmax(1).numpy() != self.data.labels)', '(self.logits.argmax(1).numpy() == self.data.labels)'),
        ('a run that never read the test set is shown with it', "if m['test_reads'] else ('held_out',", "if True else ('held_out',"),
        ('the words of others are HTML', 'escape(" ".join(str(words).split()))', '" ".join(str(words).split())'),
        ('class names are HTML', '>{escape(text)}</div>', '>{text}</div>'),
        ('nothing is remembered', 'lru_cache(remembered)(lambda', 'lru_cache(0)(lambda'),
        ('errors are swallowed', 'except Exception as e: self.fail(e)\n        else', 'except Exception as e: pass\n        else'),
        ('warnings are swallowed', "for w in caught if f'layer {layer!r}'", "for w in [] if f'layer {layer!r}'"),
        ('the target and the other class exchanged', 'torch.tensor([target, instead]), layers', 'torch.tensor([instead, target]), layers'),
        ('only what speaks for a class', 'layers, method, relu=False)', 'layers, method)'),
        ('the method is always gradcam', 'layers, method, relu=False)', 'layers, relu=False)'),
        ('a class is held against itself', 'if instead == target: instead = next(c for c in ranked if c != target)', 'pass'),
        ('the strip is of the other class', '{name: maps[name][0] for', '{name: maps[name][1] for'),
        ('cells are smoothed', "if cells else maps", "if False else maps"),
        ('signed maps are not', 'signed or i == 2)', 'i == 2)'),
        ('own pictures have the true class of a test image', "if true is None and TRUE in (target, against):", 'if False:'),
        ('an upload replaces the one before', '(name[:40], n)]', '(name[:40], 0)]'),
        ('ipywidgets 7 cannot upload', 'if isinstance(value, dict): value', 'if False: value'),
        ('the least sure first', 'np.argsort(-conf[idx]', 'np.argsort(conf[idx]'),
        ('a doubted label is not marked', "if n and i in n['doubtful']:", 'if False:'),
        ('another label is proposed', "n['proposed'][n['doubtful'] == i][0]", "n['twins'][0]"),
        ('a cell opens the transposed one', 'self.click(at))', 'self.click(at[::-1]))'),
        ('the second page shows the first', 'slice((page-1)*PAGE, page*PAGE)', 'slice(0, PAGE)'),
        ('the explorer counts epochs from 0', 'seed, epoch - 1, flip', 'seed, epoch, flip'),
    ],
    '15_stepper': [
        ('gradients are the weights', 'p.new_zeros(1) if p.grad is None else p.grad', 'p'),
        ('a pause waits for the end', 'else: self.until = 0', 'else: pass'),
        ('one batch is two', 'batch=so_far + 1', 'batch=so_far + 2'),
        ('stop does not save', '        self.save()\n        self.events', '        self.events'),
        ('two may hold one folder', "self.folder_lock.enter_context(only_one(self.folder/'checkpoints'))", 'pass'),
        ('a folder of others is used', 'if not run: check_no_stranger(', 'if False: check_no_stranger('),
        ('run.json says nothing of changes', "{**about, 'edits': t.edits}", "{**about, 'edits': []}"),
        ('trouble ends the thread', 'except Exception as e: self.recover(e)', 'except ZeroDivisionError as e: self.recover(e)'),
        ('trouble is retried for ever', 'self.error, self.until = sentence(e), 0', 'self.error = sentence(e)'),
        ('the worker draws', 'return lambda: None if loop.is_closed() else loop.call_soon_threadsafe(does)', 'return does'),
        ('the first news are the last', 'if not self.fresh:', 'if not self.losses:'),
        ('a plateau is logged as a change by hand', 'self.drawing or self.ask(', 'self.ask('),
        ('a drop of the rate is not told', 't.epoch > epoch and t.rate < rate:', 'False:'),
        ('nothing is saved while it runs', 't.epoch == t.recipe.epochs or time.monotonic() - t.saved > self.save_every_s', 'False'),
        ("somebody else's checkpoints are overwritten", 'if _newest(self.folder) != self.newest or', 'if False and'),
        ('which folder is free is not asked again', 'self.folder = t.folder = _free(self.base)', 'pass'),
        ('a batch that failed is lost', 't.open_epoch(t.at, t.losses[:t.at].tolist(), t.right.item(), t.seconds)', 'pass'),
        ('numbers that are none stay', 'if isinstance(e, FloatingPointError): self.begin(self.folder)', 'if False: pass'),
        ('a run that was judged is trained on', 'if run and stored_logits(folder):', 'if False:'),
        ('a stop keeps the folder', "    self.error = ''\n    self.unlock()", "    self.error = ''"),
        ('resumptions by hand are not noted', "for epoch in self.resumed: about", "for epoch in []: about"),
        ('typed numbers are texts', 'try: return kind(text)', 'try: return text'),
    ],
    '16_benchmarks': [
        ('the clock does not wait for the GPU', "if device.type == 'cuda': torch.cuda.synchronize(device)", 'pass'),
        ('the plain loop begins with other weights', "with seeded('init', recipe.seed): model", 'model'),
        ('gradients of the plain loop add up', '            opt.zero_grad()\n            loss.backward()', '            loss.backward()'),
        ('our loop looks at the held-out images, too', 'if training.at + 1 >= len(training.losses): training.open_epoch()', 'pass'),
        ('always in the same order', 'list(ways)[::1 if i%2 else -1]', 'list(ways)'),
        ('the ratio of medians for the median of ratios', 'round(statistics.median(ratios), 3)', 'round(statistics.median(plain)/statistics.median(ours), 3)'),
        ('the optimiser is left out of the parts', '        t.scaler.step(t.opt)\n', ''),
        ('some held-out images are taken for all', '*len(t.valid_x)/len(x)', ''),
        ('the backward pass is not counted', '.sum().backward()', '.sum()'),
        ('the slowest try for the fastest', 'get_total_flops()/min(tries)', 'get_total_flops()/max(tries)'),
        ('the ceiling on other memory', 'x.contiguous(memory_format=torch.channels_last)', 'x'),
        ('the share of the lowest ceiling', 'max(rates.values())', 'min(rates.values())'),
        ('all engines are eager', 'device=device, backend=backend, ', 'device=device, '),
        ('--quick wins over what was typed', '{**(QUICK if quick else {}), **typed}', '{**typed, **(QUICK if quick else {})}'),
    ],
    '17_cli': [
        ('a wrong flag is told after PyTorch is loaded', 'from fastcore.docments import docments', 'from fastcore.docments import docments\nfrom cifar_resnet.core import home'),
        ('time is up, and the exit code says that all is done', 'return 3', 'return 0'),
    ],
}


def all_mutants(): return [dict(name=f'{room.partition("_")[0]}.{i}', room=room, what=what, old=old, new=new) for room, rows in MUTANTS.items() for i, (what, old, new) in enumerate(rows, 1)]


def exported(notebook): return [cell for cell in notebook['cells'] if cell['cell_type'] == 'code' and ''.join(cell['source']).startswith('#| export')]


def mutate(folder, room, old, new, name, **_):
    "Replace `old` by `new` in the notebook and the module of a room, in a copy of the repository. Raises SystemExit unless each has it exactly once."
    notebook, module = folder/'nbs'/f'{room}.ipynb', folder/'cifar_resnet'/f'{room.partition("_")[2]}.py'
    nb, code = json.loads(notebook.read_text(encoding='utf-8')), module.read_text(encoding='utf-8')
    counts = [sum(''.join(cell['source']).count(old) for cell in exported(nb)), code.count(old)]
    if counts != [1, 1]: sys.exit(f'mutant {name}: {notebook.name} has its text {counts[0]} times and {module.name} {counts[1]} times, not once: {old!r}')
    for cell in exported(nb): cell['source'] = ''.join(cell['source']).replace(old, new)
    notebook.write_text(json.dumps(nb, ensure_ascii=False), encoding='utf-8')
    module.write_text(code.replace(old, new), encoding='utf-8')


# Processes. A server has imported what is slow to import, but not the package; each mutant is a process forked from it, which forks one more for each check.

SERVER = multiprocessing.get_context('forkserver')
PRELOAD = 'torch albumentations matplotlib.pyplot scipy.stats scipy.optimize safetensors.torch torchinfo captum.attr ipywidgets pytest nbdev.test'.split()


def check(folder, what):
    "Run one check in the copy that lies in `folder`; True if it passes. Only for a process of its own."
    sys.modules['__main__'] = types.ModuleType('__main__')
    sys.path[:] = [str(folder), *(p for p in sys.path if Path(p or '.').resolve() not in (ROOT, Path(__file__).resolve().parent))]
    os.environ.update(PYTHONPATH=str(folder), TMPDIR=str(folder.parent/'tmp'))
    del os.environ['PYTHONWARNINGS']
    tempfile.tempdir = None
    multiprocessing.set_start_method(None, force=True)                 # the usual one, not the one of this script
    os.chdir(folder/'nbs')
    import cifar_resnet
    assert Path(cifar_resnet.__file__).is_relative_to(folder), f'{cifar_resnet.__file__} is not the copy'
    if what.endswith('.ipynb'):
        from nbdev.test import test_nb
        return test_nb(Path(what).resolve())[0]
    import pytest
    name, *options = shlex.split(what)
    return pytest.main([f'tests/{name}', *options, '-x', '-q', '-p', 'no:cacheprovider']) == 0       # and not that there was nothing to run


def passes(folder, what, log, limit):
    "Fork a process for one check -> None if it passes, else 'failed' or how long it was waited for; what it started is gone afterwards."
    if not (child := os.fork()):
        code = 1
        try:
            os.setsid()
            signal.signal(signal.SIGINT, signal.default_int_handler); signal.signal(signal.SIGTERM, signal.SIG_DFL)
            with open(log, 'ab', buffering=0) as f: os.dup2(f.fileno(), 1); os.dup2(f.fileno(), 2)
            code = 0 if check(folder, what) else 1
        except BaseException as e: print(f'{type(e).__name__}: {e}')
        finally:
            sys.stdout.flush(); sys.stderr.flush()
            os._exit(code)
    deadline, done = time.monotonic() + limit, (0, 0)
    try:
        while not done[0] and time.monotonic() < deadline:
            time.sleep(.02)
            done = os.waitpid(child, os.WNOHANG)
        return f'no end after {limit:.0f} s' if not done[0] else 'failed' if done[1] else None
    finally:
        with suppress(OSError): os.killpg(child, signal.SIGKILL)
        if not done[0]: os.kill(child, signal.SIGKILL); os.waitpid(child, 0)


def trial(folder, origin, mutant, checks):
    "In a process of its own: copy, mutate, run the checks (with their limits in seconds) until one fails; result.json says which."
    signal.signal(signal.SIGINT, signal.SIG_IGN)                       # Ctrl-C is the parent's business, which then sends SIGTERM
    signal.signal(signal.SIGTERM, lambda *args: sys.exit(1))
    start, killed_by = time.monotonic(), None
    shutil.copytree(origin, folder/'copy')
    (folder/'tmp').mkdir()
    if mutant: mutate(folder/'copy', **mutant)
    for what, limit in checks.items():
        if how := passes(folder/'copy', what, folder/'log', limit):
            killed_by = shlex.split(what)[0] + (f' ({how})' if how != 'failed' else '')
            break
    (folder/'result.json').write_text(json.dumps(dict(killed_by=killed_by, seconds=round(time.monotonic() - start, 1))))


def trials(work, todo, jobs):
    "Run (name, mutant, checks) in `jobs` processes at a time; yield (name, result, folder) as they end. None of them is left behind."
    todo, running = list(todo), {}
    try:
        while todo or running:
            while todo and len(running) < jobs:
                name, mutant, checks = todo.pop(0)
                folder = work/name
                folder.mkdir()
                process = SERVER.Process(target=trial, args=(folder, work/'origin', mutant, checks))
                process.start()
                running[process.sentinel] = name, folder, process
            for sentinel in wait(list(running)):
                name, folder, process = running.pop(sentinel)
                process.join()
                if process.exitcode or not (folder/'result.json').exists(): sys.exit(f'{name}: the trial itself failed')
                yield name, json.loads((folder/'result.json').read_text()), folder
                shutil.rmtree(folder, ignore_errors=True)
    finally:
        for _, _, process in running.values(): process.terminate()
        for _, _, process in running.values(): process.join()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--only', nargs='+', metavar='NAME', help='rooms (08) or mutants (08.3)')
    parser.add_argument('--jobs', type=int, default=2, help='how many at a time (default: 2)')
    parser.add_argument('--publish', action='store_true', help='write nbs/results/mutants.json')
    args = parser.parse_args()
    chosen = [m for m in all_mutants() if not args.only or m['name'] in args.only or m['room'].partition('_')[0] in args.only]
    if not chosen: parser.error('there is no such mutant')
    if args.publish and args.only: parser.error('only the result of all mutants can be published')

    os.environ.update(OMP_NUM_THREADS='1', IN_TEST='1', MPLBACKEND='agg', NO_ALBUMENTATIONS_UPDATE='1', CIFAR10_MIRRORS='https://127.0.0.1:9/nothing',
                      PYTHONWARNINGS='ignore:resource_tracker')           # of semaphores that killed processes leave behind; it clears them away
    for name in ('CIFAR10_DIR', 'NOT_RUN_LOG', 'CIFAR_RESNET_TRACEBACK', 'PYTHONPATH'): os.environ.pop(name, None)
    SERVER.set_forkserver_preload(PRELOAD)
    signal.signal(signal.SIGTERM, lambda *args: sys.exit(1))           # else trials and folders would be left behind
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix='mutants-') as work:
        work = Path(work).resolve()
        for name in COPIED:
            if (ROOT/name).is_dir(): shutil.copytree(ROOT/name, work/'origin'/name, ignore=shutil.ignore_patterns('__pycache__', '.*', '*.part'))
            else: shutil.copy2(ROOT/name, work/'origin'/name)
        for m in chosen:                                               # all texts are found before anything runs
            for file in (f'nbs/{m["room"]}.ipynb', f'cifar_resnet/{m["room"].partition("_")[2]}.py'):
                (work/'try'/file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(work/'origin'/file, work/'try'/file)
            mutate(work/'try', **m)

        needed, failed, limits = list(dict.fromkeys(what for m in chosen for what in CHECKS[m['room']])), [], {}
        for name, result, folder in trials(work, ((f'control.{i}', None, {what: 5*TIMEOUT}) for i, what in enumerate(needed)), args.jobs):
            limits[needed[int(name[8:])]] = max(TIMEOUT, 3*result['seconds'])
            if result['killed_by']:
                failed.append(result['killed_by'])
                print((folder/'log').read_text(errors='replace')[-3000:], file=sys.stderr)
        if failed: sys.exit(f'without a mutant these do not pass, so that nothing can be said: {", ".join(failed)}')
        print(f'control: all {len(needed)} checks pass without a mutant ({time.monotonic() - start:.0f} s)', flush=True)

        results, by_name = {}, {m['name']: m for m in chosen}
        for name, result, _ in trials(work, ((m['name'], m, {what: limits[what] for what in CHECKS[m['room']]}) for m in chosen), args.jobs):
            results[name] = result
            print(f'{name:<6}{result["killed_by"] or "SURVIVED":<20} {result["seconds"]:6.1f} s  {by_name[name]["what"]}', flush=True)

    killed = sum(r['killed_by'] is not None for r in results.values())
    print(f'{killed} of {len(chosen)} killed, in {time.monotonic() - start:.0f} s')
    if args.publish:
        sys.path.insert(0, str(ROOT))
        from cifar_resnet.runs import write_json
        rows = [dict(name=m['name'], room=m['room'], what=m['what'], **results[m['name']]) for m in chosen]
        write_json(ROOT/'nbs'/'results'/'mutants.json', dict(command='python nbs/experiments/mutants.py --publish', killed=killed, of=len(chosen), mutants=rows))
    sys.exit(killed < GOAL*len(chosen))


if __name__ == '__main__': main()
