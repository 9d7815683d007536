# embedforge on a CPU, from the wheel: `python -m build --wheel`, then
#   docker build -t embedforge .
#   docker run --rm -p 8080:8080 -v ./mine:/models:ro embedforge serve /models/model --host 0.0.0.0
FROM python:3.12-slim

# A user of its own: nothing here needs root.
RUN useradd --create-home forge && mkdir /work && chown forge /work
COPY constraints.txt /tmp/constraints.txt
# torch first, from the index that has it without CUDA: 200 MB in place of some 3 GB.
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu \
        "$(grep -i '^torch==' /tmp/constraints.txt)"
COPY dist/embedforge-*.whl /tmp/
RUN wheel="$(ls /tmp/embedforge-*.whl)" \
    && pip install --no-cache-dir --constraint /tmp/constraints.txt "$wheel[data,documents,serve]" \
    && rm /tmp/embedforge-*.whl /tmp/constraints.txt

USER forge
WORKDIR /work
EXPOSE 8080
ENTRYPOINT ["embedforge"]
CMD ["--help"]
