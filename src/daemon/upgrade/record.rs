//! The record that a program leaves to its successor: a sealed file in memory, of sections each with its length. What is in
//! it was written by another version of lbd, maybe by a wrong one: it is taken whole and right, or not at all.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Duration;

use bytes::{Buf, Bytes};
use nix::fcntl::{FcntlArg, SealFlag, fcntl, posix_fallocate};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::misbehave;
use super::process::mapped;

/// The versions of the record that this program reads, the last of which it writes. To be raised by whatever makes an older
/// program misread it: the workers' sections are not self-describing, those of the daemon are. The same goes for the argument
/// by which a successor is told where it is.
pub const VERSIONS: RangeInclusive<u32> = 4..=4;

const MAGIC: [u8; 8] = *b"lbd\0over";
/// Magic, version, checksum, length of the sections.
const HEAD: usize = 8 + 4 + 4 + 8;
/// The longest record that is read: a hundred times what a million sessions take would be an error of its writer.
const MOST: u64 = 8 << 30;

/// How often one that nobody else can write is tried again, and after which pause.
const AT_LAST: usize = 50;
const MOMENT: Duration = Duration::from_millis(10);

/// A record that is to be written.
#[derive(Debug)]
pub struct Draft(File);

impl Draft {
    /// One with memory for so many bytes: the kernel gives it page by page, which takes longer than what is written there, and is
    /// best done while clients are served. What is not had now is had when it is written.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub fn new(bytes: usize) -> io::Result<Self> {
        misbehave::refused()?;
        let file = File::from(memfd_create("lbd-upgrade", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?);
        let _ = posix_fallocate(&file, 0, bytes.max(1) as i64);
        Ok(Self(file))
    }

    /// Marks it as begun, which [`is_begun`] sees.
    ///
    /// # Errors
    /// There is no memory left.
    pub fn begin(&self) -> io::Result<()> {
        self.0.write_all_at(&MAGIC[..1], 0)
    }

    /// What it is written to, wherever that happens.
    pub fn file(self) -> File {
        self.0
    }

    /// A record that nobody can change any more.
    ///
    /// # Errors
    /// There is no memory left.
    pub fn write(mut self, sections: &[&[u8]]) -> io::Result<File> {
        self.try_to_write(sections)?;
        Ok(self.0)
    }

    /// The same of what nobody else knows: again where there is no memory just now, for about as long as somebody waits for it.
    ///
    /// # Errors
    /// There is none all that time.
    pub fn write_at_last(mut self, sections: &[&[u8]]) -> io::Result<File> {
        let mut written = self.try_to_write(sections);
        for _ in 0..AT_LAST {
            if written.is_ok() {
                break;
            }
            thread::sleep(MOMENT);
            written = self.try_to_write(sections);
        }
        written.map(|()| self.0)
    }

    fn try_to_write(&mut self, sections: &[&[u8]]) -> io::Result<()> {
        misbehave::refused()?;
        let mut checksum = crc32fast::Hasher::new();
        let lengths: Vec<[u8; 8]> = sections.iter().map(|section| (section.len() as u64).to_le_bytes()).collect();
        let body = lengths.iter().zip(sections).flat_map(|(length, section)| [&length[..], section]);
        body.clone().for_each(|part| checksum.update(part));
        let length: u64 = sections.iter().map(|section| section.len() as u64 + 8).sum();
        let mut head = Vec::with_capacity(HEAD);
        head.extend_from_slice(&MAGIC);
        head.extend_from_slice(&VERSIONS.end().to_le_bytes());
        head.extend_from_slice(&checksum.finalize().to_le_bytes());
        head.extend_from_slice(&length.to_le_bytes());
        let Self(file) = self;
        file.rewind()?;
        file.set_len(length + HEAD as u64)?;
        file.write_all(&head)?;
        body.into_iter().try_for_each(|part| file.write_all(part))?;
        let sealed = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(file, FcntlArg::F_ADD_SEALS(sealed))?;
        Ok(())
    }
}

/// Whether somebody has begun a record, who may not have come to write it.
pub fn is_begun(file: &File) -> bool {
    let mut first = [0];
    file.read_at(&mut first, 0).is_ok_and(|read| read == 1) && first == MAGIC[..1]
}

/// The sections of a record.
///
/// # Errors
/// It is not sealed, not whole, damaged, or of a version that this program does not read.
pub fn read(file: &File, versions: &RangeInclusive<u32>) -> Result<Vec<Bytes>, String> {
    let wrong = |e: io::Error| format!("the record cannot be read: {e}");
    is_sealed(file)?;
    let mut head = [0; HEAD];
    file.read_exact_at(&mut head, 0).map_err(wrong)?;
    let (magic, rest) = head.split_at(8);
    let field = |at: usize| [rest[at], rest[at + 1], rest[at + 2], rest[at + 3]];
    let (version, checksum) = (u32::from_le_bytes(field(0)), u32::from_le_bytes(field(4)));
    let length = u64::from(u32::from_le_bytes(field(8))) | u64::from(u32::from_le_bytes(field(12))) << 32;
    if magic != MAGIC {
        return Err("the record is none of lbd's".into());
    }
    if !versions.contains(&version) {
        let (oldest, newest) = (versions.start(), versions.end());
        return Err(format!("the record has version {version}; this lbd reads {oldest} to {newest}"));
    }
    let there = file.metadata().map_err(wrong)?.len();
    if length > MOST || there != length + HEAD as u64 {
        return Err(format!(
            "the record has {there} bytes and says that it has {}",
            length.saturating_add(HEAD as u64)
        ));
    }
    // It stays where it is: reading it would be memory that is had from the kernel page by page. But who reads it may be the last
    // one who can.
    let body = match mapped(file) {
        Some(mut record) => record.split_off(HEAD),
        None => read_body(file, length as usize).map_err(wrong)?,
    };
    if crc32fast::hash(&body) != checksum {
        return Err("the record is damaged: its checksum is another one".into());
    }
    split(body).ok_or_else(|| "the record is damaged: its sections do not fill it".into())
}

fn read_body(file: &File, length: usize) -> io::Result<Bytes> {
    let mut body = vec![0; length];
    file.read_exact_at(&mut body, HEAD as u64)?;
    Ok(body.into())
}

/// Whether this may be a record at all: only what is sealed says the same to whoever reads it next.
///
/// # Errors
/// It is something else, or closed.
pub fn is_sealed(file: impl AsFd) -> Result<(), String> {
    let fd = file.as_fd().as_raw_fd();
    let seals =
        fcntl(file, FcntlArg::F_GET_SEALS).map_err(|e| format!("descriptor {fd} is no record: {}", e.desc()))?;
    if SealFlag::from_bits_truncate(seals).contains(SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK) {
        Ok(())
    } else {
        Err(format!("descriptor {fd} is no record: it is not sealed"))
    }
}

fn split(mut body: Bytes) -> Option<Vec<Bytes>> {
    let mut sections = Vec::new();
    while !body.is_empty() {
        let length = u64::from_le_bytes(*body.first_chunk()?);
        body.advance(8);
        let length = usize::try_from(length).ok().filter(|length| *length <= body.len())?;
        sections.push(body.split_to(length));
    }
    Some(sections)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sections() -> Vec<Vec<u8>> {
        vec![b"{}".to_vec(), Vec::new(), vec![7; 100_000]]
    }

    fn write(sections: &[Vec<u8>], expected: usize) -> File {
        let sections: Vec<&[u8]> = sections.iter().map(Vec::as_slice).collect();
        Draft::new(expected).unwrap().write(&sections).unwrap()
    }

    /// The same bytes but for one change, sealed or not.
    fn altered(change: impl Fn(&mut Vec<u8>), sealed: bool) -> File {
        let record = write(&sections(), 0);
        let mut bytes = vec![0; record.metadata().unwrap().len() as usize];
        record.read_exact_at(&mut bytes, 0).unwrap();
        change(&mut bytes);
        let mut file = File::from(memfd_create("altered", MFdFlags::MFD_ALLOW_SEALING).unwrap());
        file.write_all(&bytes).unwrap();
        if sealed {
            fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK)).unwrap();
        }
        file
    }

    #[test]
    fn a_record_is_read_as_it_was_written_as_often_as_asked_and_cannot_be_changed() {
        for expected in [0, 100, 1 << 20] {
            let record = write(&sections(), expected);
            assert_eq!(read(&record, &VERSIONS).unwrap(), sections());
            assert_eq!(read(&record, &VERSIONS).unwrap(), sections(), "whoever falls back reads it again");
            assert!(record.write_at(b"x", 0).is_err() && record.set_len(3).is_err());
            let whole = mapped(&record).unwrap();
            assert_eq!(read_body(&record, whole.len() - HEAD).unwrap(), whole[HEAD..], "where it cannot be mapped");
        }
        assert!(read(&write(&[], 50), &VERSIONS).unwrap().is_empty());
        let draft = Draft::new(9).unwrap();
        let file = draft.0.try_clone().unwrap();
        assert!(!is_begun(&file));
        draft.begin().unwrap();
        assert!(is_begun(&file) && read(&file, &VERSIONS).is_err());
        assert_eq!(read(&draft.write(&[b"a"]).unwrap(), &VERSIONS).unwrap(), [&b"a"[..]]);
    }

    #[test]
    fn what_is_not_whole_and_right_is_refused_with_its_reason() {
        type Change = fn(&mut Vec<u8>);
        for (change, sealed, why) in [
            ((|b| b[0] = b'x') as Change, true, "none of lbd's"),
            (|b| b[8] = 99, true, "has version 99; this lbd reads 4 to 4"),
            (|b| b[HEAD] ^= 1, true, "its checksum is another one"),
            (|b| b.truncate(b.len() - 1), true, "says that it has"),
            (|b| b.truncate(10), true, "cannot be read"),
            (|b| b[23] = 0xff, true, "says that it has"),
            (|_| (), false, "is not sealed"),
        ] {
            let error = read(&altered(change, sealed), &VERSIONS).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        for short in [&[1, 0, 0, 0, 0, 0, 0, 0][..], &[1, 2], &[0xff; 8]] {
            assert!(split(Bytes::from_static(short)).is_none());
        }
    }
}
