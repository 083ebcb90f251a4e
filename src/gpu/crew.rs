//! Threads that take their work from one queue, while the thread that hired them puts it there.

use std::panic::resume_unwind;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::{self, ScopedJoinHandle};

use crate::core::{Error, Result};

/// The end of the queue where work comes in, and where the threads' reports arrive.
pub struct Feed<'a, T> {
    queue: Sender<T>,
    reports: Receiver<u64>,
    progress: &'a mut dyn FnMut(u64),
    done: u64,
}

impl<T> Feed<'_, T> {
    /// Puts `item` behind all others.
    pub fn give(&mut self, item: T) {
        // Nobody hears it after an error; the load is over then.
        let _ = self.queue.send(item);
        while let Ok(bytes) = self.reports.try_recv() {
            self.add(bytes);
        }
    }

    /// Counts bytes that are done.
    pub fn add(&mut self, bytes: u64) {
        self.done += bytes;
        (self.progress)(self.done);
    }

    /// Says that there is no more, and counts until every thread has ended.
    fn close(self) {
        let Feed { queue, reports, progress, mut done } = self;
        drop(queue);
        for bytes in reports {
            done += bytes;
            progress(done);
        }
    }
}

/// One thread's end of the queue.
pub struct Hand<'a, T> {
    queue: &'a Mutex<Receiver<T>>,
    failed: &'a OnceLock<Error>,
    reports: Sender<u64>,
}

impl<T> Hand<'_, T> {
    /// The first item that nobody has taken; `None` when there will be no more, or something has failed.
    pub fn take(&self) -> Option<T> {
        let item = self.queue.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()?;
        self.failed.get().is_none().then_some(item)
    }

    /// Counts bytes that are done.
    pub fn report(&self, bytes: u64) {
        // The feed is there until the last hand is gone.
        let _ = self.reports.send(bytes);
    }
}

/// Runs `work` on `threads` threads while `feed`, on this one, gives them items; returns what they return. `progress`
/// gets the bytes done so far, on this thread.
///
/// The first error, whosever it is, ends all: no thread takes another item, and the error is returned when the last
/// thread has ended.
pub fn crew<T: Send, R: Send>(
    threads: usize,
    work: impl Fn(&Hand<T>) -> Result<R> + Sync,
    feed: impl FnOnce(&mut Feed<T>) -> Result<()>,
    progress: &mut dyn FnMut(u64),
) -> Result<Vec<R>> {
    let (queue, items) = channel();
    let (sender, reports) = channel();
    let (items, failed) = (Mutex::new(items), OnceLock::new());
    // Keeps the first error only.
    let keep = |result: Result<R>| result.map_err(|e| failed.set(e)).ok();
    let (work, keep) = (&work, &keep);
    let returned = thread::scope(|scope| {
        let mut feeder = Feed { queue, reports, progress, done: 0 };
        let hire = || {
            let hand = Hand { queue: &items, failed: &failed, reports: sender.clone() };
            let thread = thread::Builder::new().name("load".to_owned());
            thread.spawn_scoped(scope, move || keep(work(&hand)))
        };
        let hired: Result<Vec<_>, _> = (0..threads).map(|_| hire()).collect();
        drop(sender);
        let fed = match &hired {
            Ok(_) => feed(&mut feeder),
            Err(e) => Err(Error::runtime(format!("starting a thread: {e}"))),
        };
        let _ = fed.map_err(|e| failed.set(e));
        feeder.close();
        let join = |thread: ScopedJoinHandle<'_, Option<R>>| {
            thread.join().unwrap_or_else(|panic| resume_unwind(panic))
        };
        hired.into_iter().flatten().filter_map(join).collect()
    });
    match failed.into_inner() {
        None => Ok(returned),
        Some(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn every_item_is_done_once_in_order_and_counted() {
        for threads in [1, 3, 16] {
            let mut counts = Vec::new();
            let work = |hand: &Hand<u64>| {
                let mut mine = Vec::new();
                while let Some(item) = hand.take() {
                    mine.push(item);
                    hand.report(item);
                }
                Ok(mine)
            };
            let feed = |feed: &mut Feed<u64>| {
                (1..=500).for_each(|item| feed.give(item));
                feed.add(1000);
                Ok(())
            };
            let all = crew(threads, work, feed, &mut |done| counts.push(done)).unwrap();
            assert_eq!(all.len(), threads);
            assert!(all.iter().all(|mine| mine.is_sorted()));
            let mut all = all.concat();
            all.sort_unstable();
            assert!(all.into_iter().eq(1..=500));
            assert!(counts.len() == 501 && counts.is_sorted());
            assert_eq!(counts.last(), Some(&(500 * 501 / 2 + 1000)));
        }
    }

    #[test]
    fn the_first_error_of_a_thread_ends_the_work_of_all() {
        let both = Barrier::new(2);
        let work = |hand: &Hand<u32>| {
            let mut done = 0;
            while let Some(item) = hand.take() {
                if item < 2 {
                    // Two threads have an item each, and one of them fails.
                    both.wait();
                }
                if item == 1 {
                    return Err(Error::input("item 1"));
                }
                while item == 0 && hand.failed.get().is_none() {
                    thread::yield_now();
                }
                done += 1;
            }
            assert!(done <= 1, "{done} items after an error");
            match done {
                0 => Ok(()),
                _ => Err(Error::input("too late to be told")),
            }
        };
        let feed = |feed: &mut Feed<u32>| {
            (0..100).for_each(|item| feed.give(item));
            Ok(())
        };
        let error = crew(2, work, feed, &mut |_| {}).unwrap_err();
        assert_eq!(error.to_string(), "item 1");
    }

    #[test]
    fn an_error_of_the_feed_ends_the_work_of_all() {
        let work = |hand: &Hand<u32>| {
            while hand.take().is_some() {}
            Ok(())
        };
        let feed = |feed: &mut Feed<u32>| {
            feed.give(0);
            Err(Error::runtime("out of device memory"))
        };
        for threads in [0, 4] {
            let error = crew(threads, work, feed, &mut |_| {}).unwrap_err();
            assert_eq!(error.to_string(), "out of device memory");
        }
        let none = crew(
            0,
            work,
            |feed| {
                feed.add(7);
                Ok(())
            },
            &mut |done| assert_eq!(done, 7),
        )
        .unwrap();
        assert!(none.is_empty());
    }

    #[test]
    #[should_panic(expected = "a bug")]
    fn a_panic_is_passed_on() {
        let work = |hand: &Hand<u32>| -> Result<()> {
            assert!(hand.take().is_none(), "a bug");
            Ok(())
        };
        let feed = |feed: &mut Feed<u32>| {
            feed.give(0);
            Ok(())
        };
        let _ = crew(3, work, feed, &mut |_| {});
    }
}
