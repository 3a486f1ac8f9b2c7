from google.protobuf import descriptor_pb2 as _descriptor_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Access(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACCESS_UNSPECIFIED: _ClassVar[Access]
    ACCESS_EVERY_ROLE: _ClassVar[Access]
    ACCESS_TRAINERS: _ClassVar[Access]
    ACCESS_ADMINS: _ClassVar[Access]
    ACCESS_WORKERS: _ClassVar[Access]
ACCESS_UNSPECIFIED: Access
ACCESS_EVERY_ROLE: Access
ACCESS_TRAINERS: Access
ACCESS_ADMINS: Access
ACCESS_WORKERS: Access
METHOD_FIELD_NUMBER: _ClassVar[int]
method: _descriptor.FieldDescriptor

class MethodFacts(_message.Message):
    __slots__ = ("access", "long_lived", "retryable", "changes", "replicas")
    ACCESS_FIELD_NUMBER: _ClassVar[int]
    LONG_LIVED_FIELD_NUMBER: _ClassVar[int]
    RETRYABLE_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    access: Access
    long_lived: bool
    retryable: bool
    changes: bool
    replicas: bool
    def __init__(self, access: _Optional[_Union[Access, str]] = ..., long_lived: _Optional[bool] = ..., retryable: _Optional[bool] = ..., changes: _Optional[bool] = ..., replicas: _Optional[bool] = ...) -> None: ...
