//! Lines that wait to be written: a bounded queue in which nobody takes the room of others.

use std::collections::{HashMap, VecDeque};

/// Lines of denials that may wait, of all instances together.
pub(super) const CAPACITY: usize = 4096;
/// The daemon's own lines that may wait, beside them.
pub(super) const RESERVE: usize = 1024;

/// Whose a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// The daemon's own.
    Daemon,
    /// An instance's, by its number.
    Instance(u32),
}

/// Lines in the order in which they came.
pub(super) struct Queue<T> {
    lines: VecDeque<(Owner, T)>,
    /// How many each instance has in it; none is 0.
    held: HashMap<u32, usize>,
    own: usize,
}

impl<T> Queue<T> {
    pub(super) fn new() -> Self {
        Self { lines: VecDeque::new(), held: HashMap::new(), own: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether a line of this owner would be taken: an instance may have at most half of what is free. So one that is noisy
    /// has a third of the room, two have a quarter each, and there is always some for another.
    pub(super) fn has_room(&self, owner: Owner) -> bool {
        match owner {
            Owner::Daemon => self.own < RESERVE,
            Owner::Instance(number) => {
                let free = CAPACITY - (self.lines.len() - self.own);
                self.held.get(&number).copied().unwrap_or(0) < free / 2
            }
        }
    }

    /// Takes a line, if there is room for one of its owner.
    pub(super) fn push(&mut self, owner: Owner, line: T) -> bool {
        if !self.has_room(owner) {
            return false;
        }
        match owner {
            Owner::Daemon => self.own += 1,
            Owner::Instance(number) => *self.held.entry(number).or_default() += 1,
        }
        self.lines.push_back((owner, line));
        true
    }

    /// The line that has waited longest.
    pub(super) fn pop(&mut self) -> Option<(Owner, T)> {
        let (owner, line) = self.lines.pop_front()?;
        match owner {
            Owner::Daemon => self.own -= 1,
            Owner::Instance(number) => {
                if let Some(held) = self.held.get_mut(&number) {
                    *held -= 1;
                    if *held == 0 {
                        self.held.remove(&number);
                    }
                }
            }
        }
        Some((owner, line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(queue: &mut Queue<u32>, owner: Owner) -> usize {
        (0..).take_while(|line| queue.push(owner, *line)).count()
    }

    #[test]
    fn a_noisy_instance_leaves_room_for_every_other() {
        let mut queue = Queue::new();
        assert_eq!(fill(&mut queue, Owner::Instance(1)), CAPACITY / 3);
        for instance in 2..500 {
            assert!(queue.push(Owner::Instance(instance), 0), "no room for instance {instance}");
        }
        fill(&mut queue, Owner::Instance(2));
        assert!(queue.push(Owner::Instance(501), 0), "two that are noisy leave no room");
    }

    #[test]
    fn the_daemon_has_room_of_its_own() {
        let mut queue = Queue::new();
        for instance in 1..2048 {
            fill(&mut queue, Owner::Instance(instance));
        }
        assert_eq!(fill(&mut queue, Owner::Daemon), RESERVE);
        assert!(queue.len() <= CAPACITY + RESERVE);
    }

    #[test]
    fn what_is_taken_out_makes_room_again() {
        let mut queue = Queue::new();
        let room = fill(&mut queue, Owner::Instance(1));
        assert_eq!(queue.pop(), Some((Owner::Instance(1), 0)));
        assert!(queue.push(Owner::Instance(1), 7) && !queue.push(Owner::Instance(1), 8));
        assert_eq!(std::iter::from_fn(|| queue.pop()).count(), room);
        assert_eq!((queue.len(), queue.held.len()), (0, 0));
    }
}
