//! A scene in a file: SVG as shapes; PNG and GIF as pixels, whose colours are numbers.

use super::scene::{Area, LETTER, PALETTE, Scene, Words};
use anyhow::{Context, Result};
use embedded_graphics::Pixel;
use embedded_graphics::draw_target::DrawTarget;
use embedded_graphics::geometry::{OriginDimensions, Point, Size};
use embedded_graphics::mono_font::{MonoTextStyle, ascii::FONT_7X13};
use embedded_graphics::pixelcolor::{Gray8, GrayColor};
use embedded_graphics::prelude::Drawable;
use embedded_graphics::text::{Baseline, Text};
use std::convert::Infallible;
use std::fs::File;
use std::io::BufWriter;
use std::path::Path;
use svg::node::element::{Rectangle, Text as SvgText};

/// Writes shapes.
pub(super) fn svg(scene: &Scene, to: &Path) -> Result<()> {
    let hex = |color: u8| {
        let [red, green, blue] = PALETTE[usize::from(color)];
        format!("#{red:02x}{green:02x}{blue:02x}")
    };
    let rectangle = |area: &Area| {
        let shape = Rectangle::new().set("x", area.x).set("y", area.y);
        shape.set("width", area.width).set("height", area.height).set("fill", hex(area.color))
    };
    let text = |words: &Words| {
        SvgText::new(words.text.clone())
            .set("x", words.x)
            .set("y", words.y + 11)
            .set("textLength", words.text.chars().count() as u32 * LETTER)
            .set("fill", hex(words.color))
    };
    let all = Area { x: 0, y: 0, width: scene.width, height: scene.height, color: 0 };
    let mut document = svg::Document::new()
        .set("viewBox", (0, 0, scene.width, scene.height))
        .set("font-family", "monospace")
        .set("font-size", 12)
        .set("shape-rendering", "crispEdges")
        .add(rectangle(&all));
    for area in &scene.areas {
        document = document.add(rectangle(area));
    }
    for words in &scene.texts {
        document = document.add(text(words));
    }
    svg::save(to, &document).with_context(|| format!("cannot write {}", to.display()))
}

/// Pixels, each the number of a colour.
struct Raster {
    width: u32,
    height: u32,
    pixels: Vec<u8>,
}

impl Raster {
    fn of(scene: &Scene) -> Self {
        let Scene { width, height, .. } = *scene;
        let mut raster = Self { width, height, pixels: vec![0; (width * height) as usize] };
        for area in &scene.areas {
            for y in area.y..area.y + area.height {
                let first = (y * width + area.x) as usize;
                raster.pixels[first..first + area.width as usize].fill(area.color);
            }
        }
        for words in &scene.texts {
            let style = MonoTextStyle::new(&FONT_7X13, Gray8::new(words.color));
            let place = Point::new(words.x as i32, words.y as i32);
            let Ok(_) = Text::with_baseline(&words.text, place, style, Baseline::Top).draw(&mut raster);
        }
        raster
    }

    /// Returns the smallest part in which this differs from a raster of the same size: left, top, width, height.
    fn changed(&self, before: &Self) -> Option<(u32, u32, u32, u32)> {
        let differs = |n: &usize| self.pixels[*n] != before.pixels[*n];
        let places =
            (0..self.pixels.len()).filter(differs).map(|n| (n as u32 % self.width, n as u32 / self.width));
        let corners = places.fold(None, |corners, (x, y)| {
            let (left, top, right, bottom) = corners.unwrap_or((x, y, x, y));
            Some((x.min(left), y.min(top), x.max(right), y.max(bottom)))
        });
        corners.map(|(left, top, right, bottom)| (left, top, right - left + 1, bottom - top + 1))
    }

    fn cut(&self, (left, top, width, height): (u32, u32, u32, u32)) -> Vec<u8> {
        let line = |y| {
            let first = (y * self.width + left) as usize;
            &self.pixels[first..first + width as usize]
        };
        (top..top + height).flat_map(line).copied().collect()
    }
}

impl OriginDimensions for Raster {
    fn size(&self) -> Size {
        Size::new(self.width, self.height)
    }
}

impl DrawTarget for Raster {
    type Color = Gray8;
    type Error = Infallible;

    fn draw_iter<I: IntoIterator<Item = Pixel<Gray8>>>(&mut self, pixels: I) -> Result<(), Infallible> {
        for Pixel(place, color) in pixels {
            // A text that is too long is cut.
            if let (Ok(x), Ok(y)) = (u32::try_from(place.x), u32::try_from(place.y))
                && x < self.width
                && y < self.height
            {
                self.pixels[(y * self.width + x) as usize] = color.luma();
            }
        }
        Ok(())
    }
}

fn palette() -> Vec<u8> {
    PALETTE.concat()
}

/// Writes pixels.
pub(super) fn png(scene: &Scene, to: &Path) -> Result<()> {
    let raster = Raster::of(scene);
    let file = File::create(to).with_context(|| format!("cannot make {}", to.display()))?;
    let mut encoder = png::Encoder::new(BufWriter::new(file), raster.width, raster.height);
    encoder.set_color(png::ColorType::Indexed);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_palette(palette());
    encoder.set_compression(png::Compression::High);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&raster.pixels)?;
    writer.finish().with_context(|| format!("cannot write {}", to.display()))
}

/// Writes pixels, one scene after the other, each for so many hundredths of a second; of each only what is another than before.
pub(super) fn gif(scenes: &[Scene], hundredths: u16, to: &Path) -> Result<()> {
    let width = scenes.iter().map(|scene| scene.width).max().context("no frames")?;
    let height = scenes.iter().map(|scene| scene.height).max().context("no frames")?;
    let side = |length: u32| u16::try_from(length).context("too large for a GIF");
    let file = File::create(to).with_context(|| format!("cannot make {}", to.display()))?;
    let mut encoder = gif::Encoder::new(BufWriter::new(file), side(width)?, side(height)?, &palette())?;
    encoder.set_repeat(gif::Repeat::Infinite)?;
    let mut before: Option<Raster> = None;
    for scene in scenes {
        let raster = Raster::of(&Scene { width, height, ..scene.clone() });
        let part = match &before {
            None => (0, 0, width, height),
            // Where nothing has changed, one pixel stands for the time.
            Some(before) => raster.changed(before).unwrap_or((0, 0, 1, 1)),
        };
        let frame = gif::Frame {
            delay: hundredths,
            left: side(part.0)?,
            top: side(part.1)?,
            ..gif::Frame::from_indexed_pixels(side(part.2)?, side(part.3)?, raster.cut(part), None)
        };
        encoder.write_frame(&frame)?;
        before = Some(raster);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scene(color: u8) -> Scene {
        let area = Area { x: 10, y: 4, width: 5, height: 3, color };
        let words = Words { x: 2, y: 12, text: "it".to_owned(), color: 1 };
        Scene { width: 60, height: 30, areas: vec![area], texts: vec![words] }
    }

    #[test]
    fn pixels_are_the_numbers_of_colours() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        png(&scene(8), &path).unwrap();
        let mut decoder = png::Decoder::new(std::io::BufReader::new(File::open(&path).unwrap()));
        decoder.set_transformations(png::Transformations::EXPAND);
        let mut reader = decoder.read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert_eq!((info.width, info.height), (60, 30));
        let at = |x: usize, y: usize| pixels[3 * (y * 60 + x)..][..3].to_vec();
        assert_eq!(
            (at(10, 4), at(14, 6), at(15, 6)),
            (PALETTE[8].to_vec(), PALETTE[8].to_vec(), PALETTE[0].to_vec())
        );
        let text =
            (0..60).flat_map(|x| (12..25).map(move |y| (x, y))).filter(|&(x, y)| at(x, y) == PALETTE[1]);
        assert!(text.count() > 10);
    }

    #[test]
    fn an_animation_has_all_frames_and_later_ones_are_what_has_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.gif");
        gif(&[scene(8), scene(8), scene(3)], 20, &path).unwrap();
        let mut decoder = gif::DecodeOptions::new().read_info(File::open(&path).unwrap()).unwrap();
        let mut frames = Vec::new();
        while let Some(frame) = decoder.read_next_frame().unwrap() {
            frames.push((frame.left, frame.top, frame.width, frame.height, frame.delay));
        }
        assert_eq!(frames, [(0, 0, 60, 30, 20), (0, 0, 1, 1, 20), (10, 4, 5, 3, 20)]);
    }

    #[test]
    fn shapes_are_written_with_their_colours() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.svg");
        svg(&scene(8), &path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("viewBox=\"0 0 60 30\"") && text.contains("#3470be"), "{text}");
        assert!(text.contains(">\nit\n</text>") || text.contains(">it</text>"), "{text}");
    }
}
