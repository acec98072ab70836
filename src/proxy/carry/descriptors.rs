//! The descriptors that are carried, by number: each may be there once, or two would own it.

use std::os::fd::RawFd;

use super::assemble::Unfit;

/// More than a process has: the kernel gives out the lowest number that is free.
const MOST: usize = 1 << 26;

/// Numbers, each once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Descriptors {
    /// A bit for each number.
    words: Vec<u64>,
}

impl Descriptors {
    /// Adds one.
    ///
    /// # Errors
    /// It is here already, or can be none.
    pub fn add(&mut self, fd: RawFd) -> Result<(), Unfit> {
        let number = usize::try_from(fd).ok().filter(|number| *number < MOST);
        let number = number.ok_or_else(|| Unfit(format!("descriptor {fd} is carried, and can be none")))?;
        let (word, bit) = (number / 64, 1 << (number % 64));
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        if self.words[word] & bit != 0 {
            return Err(Unfit(format!("descriptor {fd} is carried twice")));
        }
        self.words[word] |= bit;
        Ok(())
    }

    /// Adds all of another.
    ///
    /// # Errors
    /// One is here already.
    pub fn add_all(&mut self, others: &Self) -> Result<(), Unfit> {
        if self.words.len() < others.words.len() {
            self.words.resize(others.words.len(), 0);
        }
        for (at, (ours, theirs)) in self.words.iter_mut().zip(&others.words).enumerate() {
            if *ours & theirs != 0 {
                let number = at * 64 + (*ours & theirs).trailing_zeros() as usize;
                return Err(Unfit(format!("descriptor {number} is carried twice")));
            }
            *ours |= theirs;
        }
        Ok(())
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = RawFd> {
        self.words.iter().enumerate().filter(|(_, word)| **word != 0).flat_map(|(at, word)| {
            (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| (at * 64 + bit) as RawFd)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_there_once_and_in_order() {
        let mut some = Descriptors::default();
        for fd in [900, 3, 64, 63, 0] {
            some.add(fd).unwrap();
        }
        assert_eq!(some.iter().collect::<Vec<_>>(), [0, 3, 63, 64, 900]);
        assert_eq!(some.iter().next_back(), Some(900));
        assert_eq!(some.add(64).unwrap_err().0, "descriptor 64 is carried twice");
        for none in [-1, RawFd::MIN, RawFd::MAX] {
            assert!(some.add(none).unwrap_err().0.contains("can be none"));
        }
        let mut others = Descriptors::default();
        others.add(5000).unwrap();
        others.add_all(&some).unwrap();
        assert_eq!(others.iter().collect::<Vec<_>>(), [0, 3, 63, 64, 900, 5000]);
        assert_eq!(some.add_all(&others).unwrap_err().0, "descriptor 0 is carried twice");
    }
}
