"""The head store on disk: a small, crash-safe database of files. Knows no torch.

    store.py          HeadStore, the one object that the server uses; parts.py what it is put together from
    head_versions.py  a push: from staged bytes to a version; staging.py, delta.py, blobs.py, blob_io.py on the way
    active_set.py     an activation: from versions to a generation
    deletion.py       what is deleted, and what stays
    versions.py       version records; generations.py generation records, pack.py many of these in one file
    records.py        how a record is written; layout.py names of files; identity.py the store's own record
    damage.py         what is damaged, with its repair; scrub.py reads stored bytes again
    osio.py           every call to the operating system, with failpoints.py, spares.py, rename_new.py, io_errors.py, reserve.py
"""
