//! Values that very many routes have in common, each kept once.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

/// A pool of values; what nobody holds any more is let go of now and then.
#[derive(Debug)]
pub(super) struct Pool<T> {
    values: HashSet<Arc<T>>,
    /// Values at which the next sweep is due.
    sweep_at: usize,
}

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Self {
            values: HashSet::new(),
            sweep_at: Self::FIRST_SWEEP,
        }
    }
}

impl<T> Pool<T> {
    const FIRST_SWEEP: usize = 256;
}

impl<T: Eq + Hash> Pool<T> {
    /// The one copy of a value.
    pub(super) fn share(&mut self, value: T) -> Arc<T> {
        match self.values.get(&value) {
            Some(known) => Arc::clone(known),
            None => self.keep(Arc::new(value)),
        }
    }

    /// The one copy of a value that somebody has already; that one, when it is new.
    pub(super) fn share_same(&mut self, value: &Arc<T>) -> Arc<T> {
        match self.values.get(value) {
            Some(known) => Arc::clone(known),
            None => self.keep(Arc::clone(value)),
        }
    }

    fn keep(&mut self, value: Arc<T>) -> Arc<T> {
        if self.values.len() >= self.sweep_at {
            self.values.retain(|value| Arc::strong_count(value) > 1);
            self.values.shrink_to(self.values.len() * 2);
            self.sweep_at = (self.values.len() * 2).max(Self::FIRST_SWEEP);
        }
        self.values.insert(Arc::clone(&value));
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_one_and_unused_ones_go() {
        let mut pool = Pool::default();
        let kept = pool.share(7);
        assert!(Arc::ptr_eq(&kept, &pool.share(7)));
        for value in 1000..10_000 {
            pool.share(value);
        }
        assert!(pool.values.len() <= Pool::<i32>::FIRST_SWEEP);
        assert!(Arc::ptr_eq(&kept, &pool.share(7)));
    }
}
