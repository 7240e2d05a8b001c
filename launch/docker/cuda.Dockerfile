# discojax for NVIDIA GPUs (a driver for CUDA 13 on the host; the rest comes with JAX). From the root of the clone:
#
#   docker build --file launch/docker/cuda.Dockerfile --tag discojax:cuda .
#   docker run --gpus all --volume "$PWD/runs:/discojax/runs" discojax:cuda discover run.name=first
#
# Without arguments it says what there is. SIGTERM (`docker stop --time 60`) saves before it ends.
FROM python:3.12-slim

WORKDIR /discojax
COPY pyproject.toml README.md LICENSE ./
COPY discojax ./discojax
COPY configs ./configs
RUN pip install --no-cache-dir --editable '.[cuda,hub,gcs,s3]'

ENTRYPOINT ["python", "-m", "discojax.launch"]
CMD ["--help"]
