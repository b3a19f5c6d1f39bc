//! "Did you mean …?": names that are spelled almost like the one given.

/// Most suggestions worth reading.
const MAX_SUGGESTIONS: usize = 3;

/// Results of `candidates` (a spelling, and what it stands for) whose spelling is near `wanted`, the nearest
/// first, each once. Case does not count.
pub fn nearest<'a>(wanted: &str, candidates: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<&'a str> {
    let wanted: Vec<char> = wanted.to_lowercase().chars().collect();
    // A third of the letters may differ: more would suggest unrelated short words.
    let limit = (wanted.len() / 3).max(1);
    if wanted.len() > 64 {
        return Vec::new();
    }
    let mut near: Vec<(usize, &str)> = Vec::new();
    for (spelling, meaning) in candidates {
        let spelling: Vec<char> = spelling.to_lowercase().chars().collect();
        let distance = edit_distance(&wanted, &spelling);
        if distance > limit || distance >= spelling.len() {
            continue;
        }
        match near.iter_mut().find(|(_, m)| *m == meaning) {
            Some((d, _)) => *d = (*d).min(distance),
            None => near.push((distance, meaning)),
        }
    }
    near.sort();
    near.into_iter()
        .take(MAX_SUGGESTIONS)
        .map(|(_, meaning)| meaning)
        .collect()
}

/// Insertions, deletions, replacements and swaps of neighbours that turn `a` into `b` (optimal string alignment).
fn edit_distance(a: &[char], b: &[char]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, cb) in b.iter().enumerate() {
            let replace = last[j] + usize::from(ca != cb);
            let mut best = replace.min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *ca == b[j - 1] && a[i - 1] == *cb {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words<'a>(list: &[&'a str]) -> Vec<(&'a str, &'a str)> {
        list.iter().map(|w| (*w, *w)).collect()
    }

    #[test]
    fn a_typing_error_finds_the_word() {
        let fields = words(&["selector", "namespaceSelector", "notSelector", "order"]);
        assert_eq!(nearest("selctor", fields.clone()), ["selector"]);
        assert_eq!(nearest("slector", fields.clone()), ["selector"]);
        assert_eq!(
            nearest("namespaceselector", fields.clone()),
            ["namespaceSelector"]
        );
        assert_eq!(nearest("odrer", fields.clone()), ["order"]);
        assert!(nearest("tunnel", fields).is_empty());
    }
}
