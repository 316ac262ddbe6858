#![no_main]

use std::io::Cursor;

use oggopus::{Channels, Reader, Writer, WriterOptions};

/// Files of other writers, or files whose writer has died.
fn read(data: &[u8]) {
    let Ok(mut reader) = Reader::new(Cursor::new(data)) else {
        return;
    };
    let width = reader.channels().count();
    while let Ok(Some(pcm)) = reader.read() {
        assert_eq!(pcm.len() % width, 0);
    }
}

/// A tenth of a second, as our own writer writes it.
fn seeds() -> Vec<Vec<u8>> {
    [Channels::Mono, Channels::Stereo]
        .into_iter()
        .map(|channels| {
            let mut writer =
                Writer::new(Vec::new(), WriterOptions::speech(channels)).expect("an encoder");
            writer
                .write(&vec![0; 4800 * channels.count()])
                .expect("memory takes it");
            writer.finish().expect("memory takes it")
        })
        .collect()
}

fuzz::fuzz_target!(read, seeds());
