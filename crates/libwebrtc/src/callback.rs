//! A slot for one callback of the application.

use parking_lot::Mutex;

/// Holds a callback and calls it without holding a lock, so that the callback may replace itself or
/// call anything else of this crate.
pub(crate) struct CallbackSlot<F> {
    slot: Mutex<Slot<F>>,
}

struct Slot<F> {
    callback: Option<F>,
    /// Counts replacements, so that a callback which was replaced while it ran is not put back.
    generation: u64,
}

impl<F> Default for CallbackSlot<F> {
    fn default() -> Self {
        Self {
            slot: Mutex::new(Slot {
                callback: None,
                generation: 0,
            }),
        }
    }
}

impl<F> CallbackSlot<F> {
    pub(crate) fn set(&self, callback: Option<F>) {
        let replaced = {
            let mut slot = self.slot.lock();
            slot.generation += 1;
            std::mem::replace(&mut slot.callback, callback)
        };
        // Dropped after the lock is gone: a callback may own handles whose destructors use this
        // slot.
        drop(replaced);
    }

    /// Runs `call` with the callback, if there is one, and returns whether there was.
    pub(crate) fn call(&self, call: impl FnOnce(&mut F)) -> bool {
        let (callback, generation) = {
            let mut slot = self.slot.lock();
            (slot.callback.take(), slot.generation)
        };
        let Some(mut callback) = callback else {
            return false;
        };
        call(&mut callback);
        let mut slot = self.slot.lock();
        if slot.generation == generation {
            slot.callback = Some(callback);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::CallbackSlot;
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };

    type Boxed = Box<dyn FnMut(u32) + Send + Sync>;

    #[test]
    fn callback_may_replace_itself_while_it_runs() {
        let slot: Arc<CallbackSlot<Boxed>> = Arc::default();
        let calls = Arc::new(AtomicU32::new(0));
        let (weak, counted) = (Arc::downgrade(&slot), calls.clone());
        slot.set(Some(Box::new(move |by| {
            counted.fetch_add(by, Ordering::Relaxed);
            weak.upgrade()
                .expect("the slot is alive while it calls")
                .set(None);
        })));
        assert!(slot.call(|callback| callback(2)));
        assert!(!slot.call(|callback| callback(2)));
        assert_eq!(calls.load(Ordering::Relaxed), 2);
    }
}
