#!/bin/sh
# packages.sh cpu|gpu : the pinned dependencies of Ava into /opt/ava, without what only builds or tests.
set -eu
target=$1
python=/opt/ava/bin/python

export PYTHONHASHSEED=0  # DeepSpeed's wheel lists its extras from a set
# On CPUs DeepSpeed would compile its shared-memory operation when two processes first meet, with a compiler and ninja.
# Built in it needs neither.
if [ "$target" = cpu ]; then
    build=cpu
    export DS_ACCELERATOR=cpu DS_BUILD_SHM_COMM=1
else
    build=cuda
fi
# The environment has no pip of its own; what is built there is built with its setuptools and ninja.
PATH="/opt/ava/bin:$PATH" sh /docker/pip.sh /opt/tools/bin/python --run requirements/install.py \
    --into "$python" --torch "$build" --check steps

# What runs nothing here: headers and static libraries, tests, sources of extensions; ninja, which is good for nothing
# without a compiler; Arrow's protocol for servers; the pages of MLflow's server. torch/bin holds tests, and
# torch_shm_manager, which is needed.
cd "$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
rm -rf torch/include torch/test torch/share ninja ninja-*.dist-info /opt/ava/bin/ninja
rm -rf mlflow/server/js
rm -f pyarrow/*_flight.*
# bitsandbytes brings its library for every version of every accelerator, 120 MB of them.
[ "$target" != cpu ] || find bitsandbytes -name 'lib*.so' ! -name '*_cpu.so' -delete
find torch/bin -mindepth 1 ! -name torch_shm_manager -delete
find . -type d \( -name tests -o -path ./onnx/backend/test -o -path ./pyarrow/include -o -path ./numpy/_core/include \) \
    -prune -exec rm -rf {} +
# PyTorch's libraries and DeepSpeed's operation come with the names of all their inner functions.
strip --strip-unneeded torch/lib/libtorch_*.so
# Its build id is a digest that covers the name of the folder in which pip has built it, another one each time.
find deepspeed/ops -name '*_op.*.so' -exec strip --strip-unneeded --remove-section=.note.gnu.build-id {} +
sed -i '/_op\..*\.so,/d' deepspeed-*.dist-info/RECORD  # it has the digest from before
find . -type f \( -name '*.a' -o -name '*.pyx' -o -name '*.pxd' \) -delete
