//! Memory that the allocator keeps after it was freed.

/// Gives memory that is free back to the kernel, as far as it is in whole pages. After something large was built, that is
/// most of what it took on the way; glibc would keep it for later.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    {
        #[expect(unsafe_code, reason = "there is no other way to ask the allocator")]
        // SAFETY: no pointers are passed, and nothing that is in use is touched.
        unsafe {
            libc::malloc_trim(0);
        }
    }
}
