//! System tests in network namespaces, interop with other speakers, architecture tests.
