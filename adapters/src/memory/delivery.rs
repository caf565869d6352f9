//! Deliveries of numbered records to those who share them: what is done for good, and what is under way.
//!
//! [`Progress`] is state: it is kept as an entry and comes again from snapshots and replay. [`Flow`] is not: it ends with the
//! process, after which everything that is not done comes again. Neither knows what a record is, and none asks a clock.

use std::collections::{BTreeMap, BTreeSet};

use super::rooms::{Numbers, put_numbers};

/// Gaps in what is done, at most: with more of them nothing new is delivered until the oldest are closed.
const GAPS_MAX: usize = 4096;

/// How far records are done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Where it began.
    start: u64,
    /// Everything before is done.
    next: u64,
    /// What is done beyond a gap: from, and up to.
    beyond: BTreeMap<u64, u64>,
}

impl Progress {
    /// Begins at a record.
    pub(crate) fn begin(start: u64) -> Self {
        Progress { start, next: start, beyond: BTreeMap::new() }
    }

    /// Goes on from a record, having begun at another.
    pub(crate) fn resumed(start: u64, next: u64) -> Self {
        Progress { start: start.min(next), next, beyond: BTreeMap::new() }
    }

    /// Where it began.
    pub(crate) fn start(&self) -> u64 {
        self.start
    }

    /// There are not so many gaps that nothing new is delivered.
    pub(crate) fn takes_more(&self) -> bool {
        self.beyond.len() < GAPS_MAX
    }

    /// The first record that is not done.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// The last record up to which all are done, since it began.
    pub(crate) fn last_done(&self) -> Option<u64> {
        (self.next > self.start).then(|| self.next - 1)
    }

    /// Of the numbers from `first` to `end` those that are not done.
    pub(crate) fn left(&self, first: u64, end: u64) -> u64 {
        let from = self.next.max(first);
        let done = self.beyond.iter().map(|(&done, &upto)| upto.saturating_sub(done.max(from)));
        end.saturating_sub(from).saturating_sub(done.sum())
    }

    /// The end of what is done from a record on; the record itself if it is not.
    fn past(&self, number: u64) -> u64 {
        let number = number.max(self.next);
        match self.beyond.range(..=number).next_back() {
            Some((_, &upto)) => upto.max(number),
            None => number,
        }
    }

    pub(crate) fn is_done(&self, number: u64) -> bool {
        self.past(number) != number
    }

    /// Marks a record as done; whether it was not.
    pub(crate) fn mark(&mut self, number: u64) -> bool {
        if self.is_done(number) {
            return false;
        }
        let upto = self.beyond.remove(&(number + 1)).unwrap_or(number + 1);
        match self.beyond.range_mut(..number).next_back() {
            Some((_, before)) if *before == number => *before = upto,
            _ => {
                self.beyond.insert(number, upto);
            }
        }
        true
    }

    /// Counts the numbers from one up to another as done, because there is nothing there.
    pub(crate) fn pass(&mut self, from: u64, upto: u64) {
        let from = from.max(self.next);
        if from >= upto {
            return;
        }
        let (mut first, mut last) = (from, upto);
        let touching = self.beyond.range(..=upto).rev().take_while(|(_, end)| **end >= from);
        for begin in touching.map(|(begin, _)| *begin).collect::<Vec<_>>() {
            let end = self.beyond.remove(&begin).unwrap_or(begin);
            (first, last) = (first.min(begin), last.max(end));
        }
        self.beyond.insert(first, last);
    }

    /// Moves on past what is done and what is no more. `first_from` is the first record that is there from a number on, or
    /// the number of the next one.
    pub(crate) fn settle(&mut self, first_from: impl Fn(u64) -> u64) {
        loop {
            let before = self.next;
            while let Some((&from, &upto)) = self.beyond.first_key_value()
                && from <= self.next
            {
                self.next = self.next.max(upto);
                self.beyond.pop_first();
            }
            self.next = self.next.max(first_from(self.next));
            if self.next == before {
                return;
            }
        }
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        put_numbers(out, &[self.start, self.next]);
        self.beyond.iter().for_each(|(&from, &upto)| put_numbers(out, &[from, upto]));
    }

    pub(crate) fn read(value: &[u8]) -> Self {
        let mut numbers = Numbers(value);
        let mut progress = Progress::begin(numbers.next());
        progress.next = numbers.next();
        while !numbers.0.is_empty() {
            let (from, upto) = (numbers.next(), numbers.next());
            progress.beyond.insert(from, upto);
        }
        progress
    }
}

/// A delivery that waits for its acknowledgement.
#[derive(Clone, Copy, Debug)]
struct UnderWay {
    /// The number of whom it went to.
    to: u64,
    until_us: u64,
    attempt: u32,
}

/// Deliveries under way.
#[derive(Debug, Default)]
pub(crate) struct Flow {
    /// Everything before was delivered at least once.
    sent: u64,
    under_way: BTreeMap<u64, UnderWay>,
    /// By their end.
    ends: BTreeSet<(u64, u64)>,
    /// To be delivered again, and how often they were.
    again: BTreeMap<u64, u32>,
}

impl Flow {
    /// The record that is to be delivered next. `first_from` is the first that is there from a number on.
    pub(crate) fn head(
        &mut self,
        progress: &Progress,
        first_from: impl Fn(u64) -> Option<u64>,
    ) -> Option<u64> {
        while let Some((&number, _)) = self.again.first_key_value() {
            if !progress.is_done(number) && first_from(number) == Some(number) {
                return Some(number);
            }
            self.again.pop_first();
        }
        if !progress.takes_more() {
            return None;
        }
        self.sent = progress.past(self.sent);
        loop {
            let number = first_from(self.sent)?;
            self.sent = progress.past(number);
            if self.sent == number {
                return Some(number);
            }
        }
    }

    /// Leaves out what is before a number and was never delivered.
    pub(crate) fn skip(&mut self, upto: u64) {
        self.sent = self.sent.max(upto);
    }

    /// Delivers what [`Flow::head`] has told; which attempt it is.
    pub(crate) fn deliver(&mut self, number: u64, to: u64, until_us: u64) -> u32 {
        let attempt = self.again.remove(&number).unwrap_or(0).saturating_add(1);
        self.sent = self.sent.max(number + 1);
        self.under_way.insert(number, UnderWay { to, until_us, attempt });
        self.ends.insert((until_us, number));
        attempt
    }

    /// Ends a delivery whose record is done; whose it was.
    pub(crate) fn end(&mut self, number: u64) -> Option<u64> {
        self.again.remove(&number);
        self.end_one(number, false)
    }

    fn end_one(&mut self, number: u64, comes_again: bool) -> Option<u64> {
        let ended = self.under_way.remove(&number)?;
        self.ends.remove(&(ended.until_us, number));
        if comes_again {
            self.again.insert(number, ended.attempt);
        }
        Some(ended.to)
    }

    /// Takes deliveries back whose time is over by `now_us`; tells whose. Where records keep their order, those after them
    /// come again too.
    pub(crate) fn expire(&mut self, now_us: u64, in_order: bool, mut tell: impl FnMut(u64)) {
        while let Some(&(until_us, number)) = self.ends.first()
            && until_us <= now_us
        {
            match in_order {
                true => self.take_back(|one, _| one >= number, &mut tell),
                false => {
                    if let Some(to) = self.end_one(number, true) {
                        tell(to);
                    }
                }
            }
        }
    }

    /// Takes the deliveries to somebody back.
    pub(crate) fn leave(&mut self, to: u64) {
        self.take_back(|_, whose| whose == to, &mut |_| {});
    }

    /// Takes all deliveries back.
    pub(crate) fn rewind(&mut self) {
        self.take_back(|_, _| true, &mut |_| {});
    }

    fn take_back(&mut self, wanted: impl Fn(u64, u64) -> bool, tell: &mut impl FnMut(u64)) {
        let (again, ends) = (&mut self.again, &mut self.ends);
        self.under_way.retain(|&number, one| {
            if !wanted(number, one.to) {
                return true;
            }
            ends.remove(&(one.until_us, number));
            again.insert(number, one.attempt);
            tell(one.to);
            false
        });
    }

    /// When the next delivery's time is over.
    pub(crate) fn next_end_us(&self) -> Option<u64> {
        self.ends.first().map(|&(until_us, _)| until_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_closes_gaps_in_any_order_and_reads_back() {
        let numbers = [3, 1, 4, 0, 9, 5, 2, 6];
        let mut progress = Progress::begin(0);
        let mut done = BTreeSet::new();
        for number in numbers {
            assert!(progress.mark(number) && !progress.mark(number));
            done.insert(number);
            progress.settle(|from| from);
            let expected = (0..).find(|number| !done.contains(number));
            assert_eq!(Some(progress.next()), expected);
            assert!((0..12).all(|number| progress.is_done(number) == done.contains(&number)));
            assert_eq!(progress.left(0, 10), 10 - done.len() as u64);
            let mut value = Vec::new();
            progress.put(&mut value);
            assert_eq!(Progress::read(&value), progress);
        }
        assert_eq!((progress.next(), progress.last_done()), (7, Some(6)));
        // 7 and 8 have gone by themselves.
        progress.settle(|from| if from == 7 { 9 } else { from });
        assert_eq!((progress.next(), progress.left(0, 10)), (10, 0));
    }

    #[test]
    fn what_is_not_there_is_passed() {
        let mut progress = Progress::resumed(2, 5);
        [7, 12].into_iter().for_each(|number| assert!(progress.mark(number)));
        progress.pass(8, 12);
        progress.pass(3, 5);
        assert_eq!((progress.left(0, 20), progress.next(), progress.last_done()), (9, 5, Some(4)));
        assert!((7..13).all(|number| progress.is_done(number)) && !progress.is_done(13));
        progress.pass(4, 7);
        progress.settle(|from| from);
        assert_eq!((progress.next(), progress.start()), (13, 2));
    }

    #[test]
    fn what_is_not_done_in_time_comes_again_and_in_its_order() {
        let there = |from: u64| (from < 5).then_some(from);
        let progress = Progress::begin(0);
        for in_order in [false, true] {
            let mut flow = Flow::default();
            for number in 0..4 {
                assert_eq!(flow.head(&progress, there), Some(number));
                assert_eq!(flow.deliver(number, 7, 100 - number), 1);
            }
            assert_eq!(flow.next_end_us(), Some(97));
            let mut back = 0;
            flow.expire(98, in_order, |to| back += to);
            // 2 and 3 have ended; nothing after them is under way.
            assert_eq!(back, 14);
            assert_eq!(flow.head(&progress, there), Some(2));
            assert_eq!(flow.deliver(2, 8, 200), 2);
            flow.expire(100, in_order, |_| {});
            assert_eq!(flow.head(&progress, there), Some(0));
            assert_eq!(flow.end(2), (!in_order).then_some(8));
            flow.rewind();
            let mut order = Vec::new();
            while let Some(number) = flow.head(&progress, there) {
                order.push((number, flow.deliver(number, 1, 300)));
            }
            assert_eq!(order, [(0, 2), (1, 2), (3, 2), (4, 1)]);
        }
    }

    #[test]
    fn nothing_done_is_delivered_after_a_restart() {
        let mut progress = Progress::begin(1);
        [1, 3, 4].into_iter().for_each(|number| assert!(progress.mark(number)));
        let mut flow = Flow::default();
        let mut order = Vec::new();
        while let Some(number) = flow.head(&progress, |from| (from < 7).then_some(from)) {
            flow.deliver(number, 1, 10);
            order.push(number);
        }
        assert_eq!(order, [2, 5, 6]);
    }
}
