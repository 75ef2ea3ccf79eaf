"Everything is said in settings.ini; this file only hands it to setuptools."
import re
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters=['='])
config.read(here/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']

def whole_links(text):
    "On PyPI a link to a file of the repository leads nowhere unless it is whole."
    text = re.sub(r'(!\[[^]]*\]\()(?!https?:|#)', rf"\g<1>{cfg['git_url']}/raw/{cfg['branch']}/", text)
    return re.sub(r'(\]\()(?!https?:|#)', rf"\g<1>{cfg['git_url']}/blob/{cfg['branch']}/", text)

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'],
    author=cfg['author'], url=cfg['git_url'], license='Apache-2.0',
    project_urls={
        'Documentation': cfg['doc_host'] + cfg['doc_baseurl'],
        'Changelog': f"{cfg['git_url']}/blob/{cfg['branch']}/CHANGELOG.md"},
    long_description=whole_links((here/'README.md').read_text(encoding='utf-8')),
    long_description_content_type='text/markdown',
    packages=find_packages(include=[cfg['lib_name']]), include_package_data=True,
    package_data={cfg['lib_name']: ['weights/*.safetensors']},
    python_requires=f">={cfg['min_python']}", install_requires=cfg['requirements'].split(),
    extras_require={k.removesuffix('_requirements'): cfg[k].split() for k in cfg if k.endswith('_requirements')},
    entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"]},
)
