# The library and the benchmark in one image, from requirements.lock.
#
#   docker build --tag isp .                                                for CPUs
#   docker build --tag isp --build-arg TORCH=cu130 .                        with CUDA
#   docker run --rm --volume "$PWD/results:/isp/results" isp snakemake      the default study
#
# To run every job of a workflow on this machine or a cluster in it (snakemake --sdm apptainer):
#
#   apptainer build isp.sif docker-daemon://isp:latest
FROM python:3.11-slim

ARG TORCH=cpu
WORKDIR /isp
COPY requirements.lock ./
# uv picks the builds of torch and torchvision, which bring CUDA's libraries of their own version, if any, instead of the lock's.
RUN pip install --no-cache-dir uv \
    && sed -E '/^(nvidia|cuda|triton)[-=]/d' requirements.lock >/tmp/lock \
    && uv pip install --system --no-cache --torch-backend "$TORCH" --requirement /tmp/lock \
    && rm /tmp/lock

COPY . ./
RUN uv pip install --system --no-cache --no-deps --no-build-isolation --editable .

CMD ["isp", "--help"]
