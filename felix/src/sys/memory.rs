//! Memory that is not needed any more: freed, and kept by the allocator; code, and still mapped.

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

/// Takes code that was run out of this process's memory map. What is run again comes back from the page cache, a piece at a
/// time; what only the start needed stays out.
///
/// A process touches a hundred places of a large program before it does its work, and the kernel maps some twenty pages around each: without
/// this they count as resident for ever. Bringing the rest back is some fifty faults without I/O, less than 0.1 ms.
pub fn let_go_of_code() {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else {
        return;
    };
    for (start, length) in code(&maps) {
        #[expect(unsafe_code, reason = "there is no other way to advise the kernel")]
        // SAFETY: only mappings of files that are read and run, and never written: these pages hold what the file holds, and
        // the next access brings them back. Relocated data is in other mappings.
        unsafe {
            libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED);
        }
    }
}

/// Address and length of the private, executable, read-only mappings of files, from the text of `/proc/PID/maps` (proc(5)).
fn code(maps: &str) -> impl Iterator<Item = (usize, usize)> {
    maps.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let [permissions, _offset, _device, inode] =
            [words.next()?, words.next()?, words.next()?, words.next()?];
        let is_code = permissions == "r-xp" && inode != "0" && words.next()?.starts_with('/');
        let start = usize::from_str_radix(start, 16).ok()?;
        let length = usize::from_str_radix(end, 16).ok()?.checked_sub(start)?;
        is_code.then_some((start, length))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_files_is_let_go_of() {
        let maps = "\
55d0a0000000-55d0a05ed000 r--p 00000000 fd:00 1234                       /usr/bin/margay
55d0a05ed000-55d0a1e42000 r-xp 005ec000 fd:00 1234                       /usr/bin/margay
55d0a1e43000-55d0a1ed0000 r--p 01e41000 fd:00 1234                       /usr/bin/margay
55d0a1ed0000-55d0a1ed8000 rw-p 01ecd000 fd:00 1234                       /usr/bin/margay
7f0000000000-7f0000001000 r-xp 00000000 00:00 0
7f0000002000-7f0000003000 rwxp 00000000 fd:00 77                         /usr/lib/written.so
7f0000004000-7f0000004200 r-xp 00001000 fd:00 78                         /usr/lib/a name.so
7ffd00000000-7ffd00002000 r-xp 00000000 00:00 0                          [vdso]
";
        let found: Vec<_> = code(maps).collect();
        assert_eq!(
            found,
            [(0x55d0_a05e_d000, 0x0185_5000), (0x7f00_0000_4000, 0x200)]
        );
    }
}
