#!/bin/sh
# packages.sh cpu|gpu : the pinned dependencies of Ava into /opt/ava, without what only builds or tests.
set -eu
target=$1
python=/opt/ava/bin/python
pip() { sh /docker/pip.sh /opt/tools/bin/python --python "$python" "$@"; }
pin() { sed -n "s/^$1==/$1==/p" constraints.txt; }

export PYTHONHASHSEED=0  # DeepSpeed's wheel lists its extras from a set

# PyTorch first, since its CPU build may have an index of its own.
if [ "$target" = cpu ]; then
    torch="$(pin torch)+cpu"
    pip install --no-compile "$torch" 2>/tmp/torch.log \
        || pip install --no-compile --extra-index-url https://download.pytorch.org/whl/cpu "$torch" \
        || { tail -n 3 /tmp/torch.log >&2; exit 1; }
else
    pip install --no-compile "$(pin torch | sed s/==/===/)"  # not the CPU build, which counts as the same version
fi

# On CPUs DeepSpeed would compile its shared-memory operation when two processes first meet, with a compiler and ninja.
# Built into its wheel it needs neither. The wheel is made without pip's cache, which doesn't know of these variables.
if [ "$target" = cpu ]; then export DS_ACCELERATOR=cpu DS_BUILD_SHM_COMM=1; fi
pip install --no-compile -c constraints.txt ninja numpy packaging psutil py-cpuinfo pydantic setuptools
PATH="/opt/ava/bin:$PATH" pip wheel --no-cache-dir --no-deps --no-build-isolation --no-binary deepspeed \
    --wheel-dir /wheels "$(pin deepspeed)"

# The extra `cluster` starts trainings as Kubeflow's TrainJobs, from a step's container; `serve` is for `ava serve`.
"$python" -c 'import tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
extras = project["optional-dependencies"]
print(*project["dependencies"], *extras["cluster"], *extras["serve"], sep="\n")' >requirements.txt
pip install --no-compile -c constraints.txt --find-links /wheels -r requirements.txt

# What runs nothing here: headers and static libraries, tests, sources of extensions; ninja, which is good for nothing
# without a compiler; Arrow's protocol for servers. torch/bin holds tests, and torch_shm_manager, which is needed.
cd "$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
rm -rf torch/include torch/test torch/share ninja ninja-*.dist-info /opt/ava/bin/ninja
rm -f pyarrow/*_flight.*
find torch/bin -mindepth 1 ! -name torch_shm_manager -delete
find . -type d \( -name tests -o -path ./onnx/backend/test -o -path ./pyarrow/include -o -path ./numpy/_core/include \) \
    -prune -exec rm -rf {} +
# PyTorch's libraries and DeepSpeed's operation come with the names of all their inner functions.
strip --strip-unneeded torch/lib/libtorch_*.so
# Its build id is a digest that covers the name of the folder in which pip has built it, another one each time.
find deepspeed/ops -name '*_op.*.so' -exec strip --strip-unneeded --remove-section=.note.gnu.build-id {} +
sed -i '/_op\..*\.so,/d' deepspeed-*.dist-info/RECORD  # it has the digest from before
find . -type f \( -name '*.a' -o -name '*.pyx' -o -name '*.pxd' \) -delete
