# discojax for any machine with a CPU. From the root of the clone:
#
#   docker build --file launch/docker/cpu.Dockerfile --tag discojax:cpu .
#   docker run --volume "$PWD/runs:/discojax/runs" discojax:cpu discover run.name=first
#
# Without arguments it says what there is. SIGTERM (`docker stop --time 60`) saves before it ends.
FROM python:3.12-slim

WORKDIR /discojax
COPY pyproject.toml README.md LICENSE ./
COPY discojax ./discojax
COPY configs ./configs
RUN pip install --no-cache-dir --editable '.[hub,gcs,s3]'

ENTRYPOINT ["python", "-m", "discojax.launch"]
CMD ["--help"]
