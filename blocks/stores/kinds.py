"""Every kind of store that a block may hold: a new one is its file, and its entry here."""

from typing import TYPE_CHECKING

from blocks.stores.directory import DirectoryStore
from blocks.stores.google_storage import GoogleStore
from blocks.stores.s3 import S3Store

if TYPE_CHECKING:
    from blocks.stores.azure_blob import AzureStore

    AnyStore = S3Store | GoogleStore | DirectoryStore | AzureStore
else:
    AnyStore = S3Store | GoogleStore | DirectoryStore
    try:
        from blocks.stores.azure_blob import AzureStore

        AnyStore |= AzureStore
    except ModuleNotFoundError as error:
        if not str(error.name).startswith("azure"):
            raise  # without `skyferry[azure]` there is no Azure; anything else that is missing is an error
